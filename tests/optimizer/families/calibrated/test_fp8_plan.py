"""Which products FP8 activations are for, which stay and why, and what is refused."""

from __future__ import annotations

import dataclasses
import sys
import types

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from fp8 import (
    DYNAMIC,
    IDS,
    STATIC,
    cnn,
    converted,
    encoder,
    images,
    left,
    noise,
    product,
)
from int8 import decibels, run
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.conversion.pipeline import optimize
from onnxpress.optimizer.errors import OnnxpressError, UsageError
from onnxpress.optimizer.model_io import storage
from onnxpress.optimizer.planning.plan_minifloat import plan_minifloat
from onnxpress.optimizer.settings.recipe import Recipe
from sessions import RUNS_FLOAT8_PRODUCTS

pytestmark = pytest.mark.skipif(not RUNS_FLOAT8_PRODUCTS, reason="ONNX Runtime before 1.32 refuses products of FLOAT8")


def test_convolutional_networks_keep_the_first_and_the_last_product():
    reasons = left(cnn(), STATIC)
    assert reasons == {
        "conv0": "one of the first products; first_and_last takes it",
        "head": "one of the last products; first_and_last takes it",
    }
    assert left(cnn(), dataclasses.replace(STATIC, first_and_last=True)) == {}


def test_heads_are_all_last():
    b = graphs.Builder(17)
    x = b.input("x", [1, 8, 6, 6])
    y = b.op("Relu", b.op("Conv", x, b.constant("w", noise(8, 8, 1, 1)), name="stem"))
    y = b.op("Conv", y, b.constant("v", noise(8, 8, 1, 1)), name="middle")
    for name in ("left", "right"):
        b.output(b.op("Conv", y, b.constant(f"w_{name}", noise(4, 8, 1, 1)), name=name), [1, 4, 6, 6])
    assert left(b.model(), STATIC).keys() == {"stem", "left", "right"}


def test_encoders_are_taken_whole():
    plan = plan_minifloat(encoder(), STATIC)
    assert [node.name for node in plan.operators] == ["q", "k", "v", "scores", "mix", "o"]
    assert {d.node.name for d in plan.decisions if "coverage extended" in d.reason} == {"embed", "norm", "residual"}
    assert left(encoder(), dataclasses.replace(STATIC, first_and_last=False)).keys() >= {"q", "k", "v", "o"}
    wide = plan_minifloat(encoder(), dataclasses.replace(STATIC, coverage="extended"))
    assert {node.name for node in wide.operators} == {
        "embed", "norm", "q", "k", "v", "scores", "mix", "o", "residual"
    }  # fmt: skip


REASONS = {
    "no constant weight": lambda b, x: b.op("Conv", x, b.input("w", [4, 8, 1, 1]), name="it"),
    "the weight holds NaN or infinity": lambda b, x: b.op(
        "Conv", x, b.constant("w", np.full((4, 8, 1, 1), np.inf, np.float32)), name="it"
    ),
    "these schemes do not round what ConvTranspose reads": lambda b, x: b.op(
        "ConvTranspose", x, b.constant("w", noise(8, 4, 3, 3)), name="it"
    ),
    "the constant is on the left": lambda b, x: b.op("MatMul", b.constant("w", noise(6, 6)), x, name="it"),
    "excluded by the recipe": lambda b, x: b.op("Conv", x, b.constant("w", noise(4, 8, 1, 1)), name="excluded_it"),
}


@pytest.mark.parametrize("reason", REASONS)
def test_reasons(reason):
    b = graphs.Builder(17)
    b.output(REASONS[reason](b, b.input("x", [1, 8, 6, 6])), [None] * 4)
    recipe = dataclasses.replace(STATIC, exclude=("excluded*",), first_and_last=True)
    (found,) = left(b.model(), recipe).values()
    assert found == reason


def test_kept_and_unusable():
    plan = plan_minifloat(cnn(), STATIC, {"relu0_out": "it holds NaN"}, {"conv2": "for the bound"})
    reasons = {d.node.name: d.reason for d in plan.decisions if not d.taken}
    assert reasons["conv1"] == "relu0_out: it holds NaN"
    assert reasons["conv2"] == "for the bound"


def test_branches_are_left():
    b = graphs.Builder(17)
    x = b.input("x", [1, 8])
    inner, other = graphs.Builder(17), graphs.Builder(17)
    inner.output(inner.op("MatMul", x, b.constant("w", noise(8, 8)), name="product"), [1, 8])
    other.output(other.op("Identity", x), [1, 8])
    z = b.op("If", b.input("c", [], ir.DataType.BOOL), name="choice", then_branch=inner.graph, else_branch=other.graph)
    b.output(z, [1, 8])
    (decision,) = plan_minifloat(b.model(), STATIC).decisions
    assert "inside a graph" in decision.reason


def test_nothing_but_the_first_and_the_last(tmp_path):
    storage.save(cnn(1), tmp_path / "cnn.onnx")
    with pytest.raises(OnnxpressError, match=r"nothing to quantize.*first_and_last takes it"):
        optimize(tmp_path / "cnn.onnx", STATIC, calibration=Calibration(images()))


@pytest.mark.parametrize("recipe", [STATIC, DYNAMIC], ids=lambda recipe: recipe.scheme)
def test_quantizing_twice_is_refused(recipe):
    changed, _ = converted(product(), DYNAMIC)
    with pytest.raises(OnnxpressError, match="already quantized"):
        converted(changed, recipe, [{"x": noise(4, 64)}] if recipe.scheme == "fp8-static" else None)


def test_data_with_nan_is_refused():
    with pytest.raises(OnnxpressError, match="x"):
        converted(product(), STATIC, [{"x": np.full((4, 64), np.nan, np.float32)}])


def test_an_inner_tensor_with_infinities_is_left(tmp_path):
    b = graphs.Builder(17)
    x = b.input("x", ["n", 64])
    y = b.op("MatMul", x, b.constant("w", graphs.weight(64, 48)), name="product")
    z = b.op("MatMul", b.op("Reciprocal", x, name="inverse"), b.constant("v", graphs.weight(64, 48)), name="left")
    b.output(b.op("Where", b.op("IsNaN", z), y, b.op("Relu", y)), ["n", 48])
    _, report = converted(b.model(), STATIC, [{"x": np.eye(64, dtype=np.float32)}])
    assert report.left["MatMul: inverse_out: it holds NaN or infinity"] == 1


@pytest.mark.parametrize(("values", "message"), [
    ({"weight_format": "e4m2"}, 'weight_format is "e4m2"; did you mean'),
    ({"weight_format": "int4"}, "; must be one of e4m3fn, e5m2, e3m4, e3m2, e2m3, e2m1$"),
    ({"activation_format": ["e4m3"]}, "; must be one of e4m3fn, e5m2, e3m4$"),
    ({"activation_format": "e2m1"}, 'activation_format is "e2m1"'),
    ({"coverage": "all"}, 'coverage is "all"'),
    ({"range_method": "mse"}, "range_method is .*for codes at equal distances; fp8-static takes minmax"),
    ({"only_if_faster": True}, "only_if_faster: not read by scheme fp8-static"),
    ({"scheme": "fp8-dynamic", "smooth": True}, "smooth: not read by scheme fp8-dynamic"),
    ({"scheme": "int8-static", "weight_format": "e4m3"}, "weight_format: not read by scheme int8-static"),
    ({"scheme": "int4", "overrides": [{"match": "a", "weight_format": "e5m2"}]}, "overrides.*not read by scheme int4"),
    ({"scheme": "int4", "coverage": "extended"}, "coverage: not read by scheme int4"),
])  # fmt: skip
def test_recipes_that_make_no_sense(values, message):
    with pytest.raises(UsageError, match=message):
        Recipe.from_mapping({"scheme": "fp8-static", **values})


def test_names_of_formats():
    recipe = Recipe(scheme="fp8-static", weight_format="e5m2", activation_format="e4m3")
    assert recipe.formats == ("e5m2", "e4m3fn")
    assert Recipe(scheme="fp8-mixed-static").formats == ("e3m4", "e4m3fn")
    assert Recipe(scheme="fp8-e5m2-static").formats == ("e5m2", "e5m2")
    assert STATIC.ranges == "minmax"


def test_overrides_mix_formats():
    values = {"scheme": "fp8-dynamic", "overrides": [
        {"match": "q", "activation_format": "e5m2"}, {"match": "k", "weight_format": "e5m2"},
        {"match": "v", "keep_float": True},
    ]}  # fmt: skip
    recipe = Recipe.from_mapping(values)
    assert Recipe.from_mapping(recipe.to_mapping()) == recipe
    decisions = {d.node.name: d for d in plan_minifloat(encoder(), recipe).decisions}
    assert decisions["q"].scheme == "e4m3fn, activations e5m2"
    assert decisions["k"].scheme == "e5m2, activations e4m3fn"
    assert not decisions["v"].taken
    changed, report = converted(encoder(), recipe)
    assert report.schemes == {"e4m3fn, activations e5m2": 1, "e5m2, activations e4m3fn": 1, "e4m3fn": 3}
    assert decibels(run(encoder(), IDS)[0], run(changed, IDS)[0]) > 15


def test_bound_on_the_drop(tmp_path, monkeypatch):
    model = cnn()

    def nearness(session):
        got = np.concatenate([session.run(None, feed)[0] for feed in images()])
        want = np.concatenate([run(model, feed)[0] for feed in images()])
        return 1 - float(np.square(got - want).sum() / np.square(want).sum())

    monkeypatch.setitem(sys.modules, "judge", types.SimpleNamespace(nearness=nearness))
    storage.save(model, tmp_path / "cnn.onnx")
    kept = {}
    for bound in (0.5, 1e-4):
        recipe = dataclasses.replace(STATIC, max_drop=bound, metric="judge:nearness", restore_moments=False)
        report = optimize(tmp_path / "cnn.onnx", recipe, tmp_path / "o.onnx", calibration=Calibration(images()))
        kept[bound] = report.details["mixed_precision"]["kept"]
        assert report.details["metric"]["float32"] == pytest.approx(1)
    assert kept[0.5] == ()
    assert 0 < len(kept[1e-4]) < 4
    assert report.left["Conv: kept in float for the bound on the metric's drop"] == len(kept[1e-4])
