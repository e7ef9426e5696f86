"""A study of lengths: its front, its recipes and its plot."""

from __future__ import annotations

import io
import json

import numpy as np
import onnx_ir as ir
import pytest
from encoder_layers import LayerModel
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.analysis.length_study import study_lengths
from onnxpress.optimizer.analysis.plots import plot_lengths
from onnxpress.optimizer.families import length_search
from rich.console import Console

CASE = LayerModel(layers=3)
FEEDS = CASE.feeds((30, 25))
FLOAT: dict[str, np.ndarray] = {}


def likeness(session):
    y = session.run(None, FEEDS)[0][:, 0].reshape(-1)
    want = FLOAT.setdefault("y", y)
    return float(y @ want / np.linalg.norm(y) / np.linalg.norm(want))


@pytest.fixture
def study(tmp_path, monkeypatch):
    """With bounds of which the tightest is met by none."""
    monkeypatch.setattr(length_search, "_timed", lambda *_given: [4.0, 3.25, 2.5, 2.05, 1.75, 1.45, 1.15])
    FLOAT.clear()
    ir.save(CASE.model(), tmp_path / "m.onnx")
    recipe = Recipe(scheme="int8-dynamic", lengths="search", metric=likeness, max_drop=0.02)
    return study_lengths(str(tmp_path / "m.onnx"), tmp_path / "f", recipe, [0.02, 1e-9, 0.01])


def test_a_recipe_for_each_bound(study, tmp_path):
    assert [each.most for each in study.chosen] == [1e-9, 0.01, 0.02]
    tightest, *others = study.chosen
    assert (tightest.found, tightest.recipe) == (None, "")
    for each in others:
        assert each.found in study.front
        assert each.found.loss <= each.most
        assert not any(point.cost < each.found.cost and point.loss <= each.most for point in study.front)
        recipe = Recipe.from_toml(each.recipe)
        report = optimize(str(tmp_path / "m.onnx"), recipe, tmp_path / "again.onnx")
        assert report.details["lengths"] == list(each.found.lengths)
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == [
        "m.lengths-1%.toml", "m.lengths-2%.toml", "m.lengths.onnx"
    ]  # fmt: skip


def test_what_it_tells(study, tmp_path):
    console = Console(width=300, file=io.StringIO())
    study.print(console)
    text = console.file.getvalue()
    assert "m.lengths-1%.toml" in text
    assert "none loses 0.00 % or less" in text
    assert "100%, 100%" in text
    told = json.loads(study.to_json())
    assert len(told["front"]) == len(study.front) > 2
    plot_lengths(study, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
