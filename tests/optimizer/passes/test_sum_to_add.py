"""A Sum of two becomes an Add; others stay."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import Builder
from onnxpress.optimizer.passes.sum_to_add import SumToAdd
from rewrites import rewritten

X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)


def sum_of(count: int, opset: int = 17):
    b = Builder(opset)
    x = b.input("x", [2, 3, 4])
    others = [b.constant(f"c{i}", np.float32([[i + 1]] * 3)) for i in range(count - 1)]
    b.output(b.op("Sum", x, *others, name="sum"), [2, 3, 4])
    return b.model()


def test_two_become_an_add():
    model = sum_of(2)
    output = model.graph.outputs[0].name
    assert rewritten(model, SumToAdd(), {"x": X}, depth=1) == ["Add"]
    assert (model.graph[0].name, model.graph.outputs[0].name) == ("sum", output)


@pytest.mark.parametrize("count", [1, 3])
def test_other_counts_stay(count):
    assert rewritten(sum_of(count), SumToAdd(), {"x": X}, depth=count, changes=False) == ["Sum"]


def test_a_sum_that_may_not_broadcast_stays():
    assert not SumToAdd()(sum_of(2, opset=7))
