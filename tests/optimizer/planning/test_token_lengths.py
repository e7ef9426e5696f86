"""Schedules of lengths."""

from __future__ import annotations

import numpy as np
import pytest
from onnxpress.optimizer import Recipe
from onnxpress.optimizer.errors import OnnxpressError
from onnxpress.optimizer.planning.token_lengths import even_lengths, lengths_for, lengths_text, work_of


@pytest.mark.parametrize("budget", [1.0, 0.9, 0.5, 0.25])
@pytest.mark.parametrize("layers", [2, 6, 12])
def test_a_budget_is_met_by_one_share(budget, layers):
    if budget <= 1 / layers:
        with pytest.raises(OnnxpressError, match=r"length_budget: 0\.\d+ is too little: the first of 2 layers"):
            even_lengths(budget, layers)
        return
    read = np.array((1.0, *even_lengths(budget, layers)))
    assert len(read) == layers
    assert np.mean(read) == pytest.approx(budget, abs=2e-4)
    assert len(set(read[1:])) == 1


def test_work():
    assert work_of((), 6) == 1
    assert work_of((0.5,), 2) == 0.75
    assert work_of((0.5, 0.25), 4) == (1 + 0.5 + 3 * 0.25 - 0.25) / 4
    assert work_of((0.5, 16), 3, tokens=64) == (1 + 0.5 + 0.25) / 3
    assert work_of((16, 0.5), 3, tokens=64) == (1 + 0.25 + 0.25) / 3  # what is gone stays away


def test_what_a_recipe_asks_for():
    dynamic = {"scheme": "int8-dynamic"}
    assert lengths_for(Recipe(**dynamic), 3) is None
    assert lengths_for(Recipe(**dynamic, lengths="0.5,4"), 3) == (0.5, 4)
    assert lengths_for(Recipe(**dynamic, lengths="input"), 3) == (1, 1)
    assert lengths_for(Recipe(**dynamic, lengths="input", length_budget=0.6), 3) == even_lengths(0.6, 3)
    assert lengths_text((0.9, 0.5027, 64)) == "90%, 50.27%, 64 tokens"
