"""Lengths that are searched for a model, by a function that judges sessions."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from encoder_layers import LayerModel
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.errors import OnnxpressError, UsageError
from onnxpress.optimizer.families import length_search
from onnxpress.optimizer.families.length_search import LayerTimes
from onnxpress.optimizer.planning.token_lengths import lengths_text
from onnxpress.optimizer.settings.lengths import lengths_of

CASE = LayerModel(layers=4)
FEEDS = CASE.feeds((40, 25))
_SECONDS = (4.0, 3.25, 2.5, 2.05, 1.75, 1.45, 1.15)
FLOAT: dict[str, np.ndarray] = {}


def likeness(session):
    """Cosine of what the first token is with what the float model gave, which is asked first."""
    y = session.run(None, FEEDS)[0][:, 0].reshape(-1)
    want = FLOAT.setdefault("y", y)
    return float(y @ want / np.linalg.norm(y) / np.linalg.norm(want))


@pytest.fixture(autouse=True)
def _known_times(monkeypatch):
    """Such small models take no time that can be told from chance."""
    monkeypatch.setattr(length_search, "_timed", lambda _session, feeds, _layers: [*_SECONDS] if feeds else [])


def searched(tmp_path, **recipe):
    FLOAT.clear()
    settings = {"scheme": "int8-dynamic", "lengths": "search", "metric": likeness, "max_drop": 0.01, **recipe}
    return optimize(CASE.model(), Recipe(**settings), tmp_path / "out.onnx")


@pytest.mark.parametrize("fuse_layers", [False, True])
def test_finds_the_cheapest_within_the_bound(fuse_layers, tmp_path):
    stages = []
    FLOAT.clear()
    report = optimize(
        CASE.model(), Recipe(scheme="int8-dynamic", lengths="search", metric=likeness, max_drop=0.01,
                             fuse_layers=fuse_layers),
        tmp_path / "out.onnx", progress=lambda stage, done, whole: stages.append((stage, done, whole)),
    )  # fmt: skip
    lengths = lengths_of(report.recipe["lengths"])
    assert len(lengths) == 3
    assert min(lengths) < 1
    assert report.accuracy.float32 == pytest.approx(1)
    assert 0.99 <= report.accuracy.value < 1
    judged = [attempt.recipe for attempt in report.trail]
    assert len(judged) == len(set(judged)) > 20
    assert lengths_text(lengths) in judged
    front = report.details["length_search"]
    assert [each["cost"] for each in front] == sorted((each["cost"] for each in front), reverse=True)
    assert report.details["lengths"] == list(lengths)
    assert "lengths judged by" in dict(report.rows)["searched"]
    searching = [done for stage, done, whole in stages if stage == "search lengths"]
    assert searching == sorted(searching)
    # The same again, without a search, is the same model.
    again = optimize(CASE.model(), Recipe.from_mapping(report.recipe), tmp_path / "again.onnx")
    assert again.recipe == report.recipe
    graphs = [onnx.load(tmp_path / f"{name}.onnx").graph for name in ("out", "again")]
    assert graphs[0] == graphs[1]
    assert "metric" not in json.loads(
        next(p.value for p in onnx.load(tmp_path / "out.onnx").metadata_props if p.key == "onnxpress.recipe")
    )


def test_a_bound_that_the_model_breaks_anyway(tmp_path):
    with pytest.raises(OnnxpressError, match=r"loses 0\.\d+ % of .*likeness even where all tokens go on, more than"):
        searched(tmp_path, max_drop=1e-9)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": None}, r"lengths is \"search\", which needs a metric, and max_drop or max_kl"),
        ({"max_drop": None}, r"lengths is \"search\", which needs a metric, and max_drop or max_kl"),
        ({"lengths": "0.5"}, r"max_drop: not read without lengths \"search\""),
        ({"lengths": None, "max_drop": None}, r"metric: not read without lengths \"search\""),
        ({"length_budget": 0.5}, "length_budget: not read with lengths"),
    ],
)
def test_what_does_not_go_together(settings, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        searched(tmp_path, **settings)


def test_costs_of_layers():
    """Of a model whose layers take a second and their share of six more, and 0.4 s around them."""
    shares = np.array((1.0, 0.75, 0.5, 0.35, 0.25, 0.15, 0.05))
    seconds = 0.4 + 7 + 3 * (1 + 6 * shares)
    times = LayerTimes(seconds, 4)
    assert times((1.0, 1.0, 1.0)) == pytest.approx(1)
    assert times((0.75, 0.5, 0.25)) == pytest.approx((0.4 + 7 + 5.5 + 4 + 2.5) / 28.4)
    assert times((0.625, 0.625, 0.625)) == pytest.approx((0.4 + 7 + 3 * 4.75) / 28.4)
    assert times((0.01,) * 3) == times((0.05,) * 3)
    noisy = LayerTimes(seconds + np.array([0, 0, 0, 9, 0, 0, 0]), 4)
    assert noisy((0.5,) * 3) >= noisy((0.35,) * 3)
