"""Activations and weights as floating-point numbers of few bits: plan, placement, and both schemes end to end."""

from __future__ import annotations

import dataclasses
import sys
import types

import graphs
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from int8 import decibels, run
from onnxpress.custom_ops import reference, register
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.conversion.pipeline import optimize
from onnxpress.optimizer.errors import OnnxpressError, UsageError
from onnxpress.optimizer.model_io import storage
from onnxpress.optimizer.passes.place_minifloat import activation_scale
from onnxpress.optimizer.planning.plan_minifloat import plan_minifloat
from onnxpress.optimizer.quantization.round_weight import round_weight
from onnxpress.optimizer.settings.recipe import Recipe
from sessions import RUNS_FLOAT8_PRODUCTS, on_provider, options, taken

pytestmark = pytest.mark.skipif(not RUNS_FLOAT8_PRODUCTS, reason="ONNX Runtime before 1.32 refuses products of FLOAT8")

SIZE = 12
STATIC, DYNAMIC = Recipe(scheme="fp8-static"), Recipe(scheme="fp8-dynamic")
ACTIVATIONS = ("e4m3fn", "e5m2", "e3m4")
WEIGHTS = {"e4m3fn": 30, "e5m2": 24, "e3m4": 36, "e3m2": 24, "e2m3": 28, "e2m1": 16}
"""Least decibels of a weight of normal numbers."""
LEVELS = ("ALL", "NONE")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def images(count: int = 6, scale: float = 1.0) -> list[dict[str, np.ndarray]]:
    return [{"x": noise(1, 8, SIZE, SIZE, seed=i) * np.float32(scale)} for i in range(count)]


def cnn(layers: int = 4, opset: int = 17) -> ir.Model:
    b = graphs.Builder(opset)
    y = b.input("x", ["batch", 8, SIZE, SIZE])
    for i in range(layers):
        weight, bias = b.constant(f"w{i}", noise(8, 8, 3, 3, seed=i) / 8), b.constant(f"b{i}", noise(8, seed=i))
        y = b.op("Relu", b.op("Conv", y, weight, bias, name=f"conv{i}", pads=[1, 1, 1, 1]), name=f"relu{i}")
    y = b.op("Flatten", b.op("GlobalAveragePool", y))
    b.output(b.op("Gemm", y, b.constant("head", noise(5, 8)), name="head", transB=1), ["batch", 5])
    return b.model()


def product(opset: int = 17) -> ir.Model:
    b = graphs.Builder(opset)
    y = b.op("MatMul", b.input("x", ["n", 64]), b.constant("w", graphs.weight(64, 48)), name="product")
    b.output(y, ["n", 48])
    return b.model()


def encoder(opset: int = 17) -> ir.Model:
    """One head of attention between a norm and a residual."""
    b = graphs.Builder(opset)
    ids = b.input("ids", [1, 10], ir.DataType.INT64)
    table = b.constant("table", noise(1 << 15, 32))
    x = b.op("LayerNormalization", b.op("Gather", table, ids, name="embed"), b.constant("g", noise(32)), name="norm")
    q, k, v = (
        b.op(
            "Add",
            b.op("MatMul", x, b.constant(f"w{n}", noise(32, 32, seed=i) / 6), name=n),
            b.constant(f"b{n}", noise(32)),
        )
        for i, n in enumerate("qkv")
    )
    scores = b.op("Softmax", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 1]), name="scores"))
    y = b.op("MatMul", b.op("MatMul", scores, v, name="mix"), b.constant("wo", noise(32, 32)), name="o")
    b.output(b.op("Add", x, y, name="residual"), [1, 10, 32])
    return b.model()


IDS = {"ids": np.random.default_rng(3).integers(0, 1 << 15, (1, 10))}


def converted(model: ir.Model, recipe: Recipe, data: list | None = None):
    """The converted model, which passes the checker, and the report."""
    changed = model.clone()
    given = Calibration(data) if data is not None else None
    report = optimize(changed, recipe, calibration=given)
    onnx.checker.check_model(ir.to_proto(changed), full_check=True)
    return changed, report


def rounded(x: np.ndarray, format: str, largest: float | None = None) -> np.ndarray:
    """By the reference alone."""
    scale = activation_scale(float(np.abs(x).max()) if largest is None else largest, format)
    return reference.round_minifloat(x, scale, format=format)


def decoded(weight: np.ndarray, axis: int, recipe: Recipe) -> np.ndarray:
    return round_weight(weight, axis, recipe.settings("", "").weight, convolution=weight.ndim > 2).values()


def left(model: ir.Model, recipe: Recipe) -> dict[str, str]:
    return {d.node.name: d.reason for d in plan_minifloat(model, recipe).decisions if not d.taken}


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


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("format", ACTIVATIONS)
@pytest.mark.parametrize("recipe", [STATIC, DYNAMIC], ids=lambda recipe: recipe.scheme)
def test_product_against_the_reference(recipe, format, weights):
    smooth = False if recipe is STATIC else None
    recipe = dataclasses.replace(recipe, activation_format=format, weight_format=weights, smooth=smooth)
    x, model = noise(20, 64), product()
    changed, report = converted(model, recipe, [{"x": x}] if recipe.scheme == "fp8-static" else None)
    weight = decoded(model.graph.initializers["w"].const_value.numpy(), 1, recipe)
    want = rounded(x, format).astype(np.float64) @ weight
    for level in LEVELS:
        (got,) = run(changed, {"x": x}, level)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    assert report.rewritten == {"MatMul": 1}
    assert [(w.name, w.nodes, w.scheme) for w in report.weights] == [("w", ("product",), weights)]
    assert report.weights[0].sqnr > WEIGHTS[weights] - 4


def test_scales_are_those_of_the_calibration():
    """What is larger at run time is held to the largest, in static models alone."""
    x = noise(20, 64)
    static, _ = converted(product(), dataclasses.replace(STATIC, smooth=False), [{"x": x}])
    dynamic, _ = converted(product(), DYNAMIC)
    weight = decoded(graphs.weight(64, 48), 1, STATIC)
    for changed, largest in ((static, float(np.abs(x).max())), (dynamic, None)):
        (got,) = run(changed, {"x": 4 * x})
        want = rounded(4 * x, "e4m3fn", largest) @ weight
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("weights", WEIGHTS)
def test_convolutional_network_against_the_reference(weights):
    """The first product computes on float, the second on what is rounded."""
    recipe = dataclasses.replace(STATIC, weight_format=weights, restore_moments=False)
    b = graphs.Builder(17)
    x = b.input("x", [1, 8, 6, 6])
    y = b.op("Relu", b.op("Conv", x, b.constant("w0", noise(8, 8, 1, 1)), name="first"))
    y = b.op("Conv", y, b.constant("w1", noise(8, 2, 1, 1)), b.constant("b1", noise(8)), name="second", group=4)
    b.output(b.op("Conv", b.op("Relu", y), b.constant("w2", noise(4, 8, 1, 1)), name="third"), [1, 4, 6, 6])
    feeds = {"x": noise(1, 8, 6, 6)}
    changed, report = converted(b.model(), recipe, [feeds])
    assert report.rewritten == {"Conv": 1}
    first = np.maximum(np.einsum("oc,nchw->nohw", noise(8, 8), feeds["x"]), 0)
    grouped = rounded(first, "e4m3fn").reshape(1, 4, 2, 6, 6)
    weight = decoded(noise(8, 2, 1, 1), 0, recipe).reshape(4, 2, 2)
    second = np.einsum("goc,ngchw->ngohw", weight, grouped).reshape(1, 8, 6, 6) + noise(8)[:, None, None]
    want = np.einsum("oc,nchw->nohw", noise(4, 8), np.maximum(second, 0))
    for level in LEVELS:
        np.testing.assert_allclose(run(changed, feeds, level)[0], want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("coverage", ["standard", "extended"])
@pytest.mark.parametrize("format", ACTIVATIONS)
@pytest.mark.parametrize("recipe", [STATIC, DYNAMIC], ids=lambda recipe: recipe.scheme)
def test_encoder(recipe, format, coverage):
    recipe = dataclasses.replace(recipe, activation_format=format, coverage=coverage)
    model = encoder()
    changed, report = converted(model, recipe, [IDS] if recipe.scheme == "fp8-static" else None)
    (want,) = run(model, IDS)
    results = [run(changed, IDS, level)[0] for level in LEVELS]
    for got in results:
        assert (10 if format == "e5m2" else 15) < decibels(want, got) < 50
    assert decibels(*results) > 20, "sums in another order may fall on the other side of a tie"
    assert ("Gather" in report.rewritten) == (coverage == "extended")
    assert {weight.name for weight in report.weights} >= {"wq", "wk", "wv", "wo"}
    readers = {v.name: len(v.uses()) for n in changed.graph if n.op_type == "DequantizeLinear" for v in n.outputs}
    if format == "e4m3fn":
        assert readers["norm_out_e4m3fn"] == 3 + (coverage == "extended"), "rounded once for all who read it"


def test_rows_of_a_table_are_decoded_after_they_are_read():
    b = graphs.Builder(17)
    table = noise(1 << 15, 32)
    b.output(
        b.op("Gather", b.constant("table", table), b.input("ids", ["n"], ir.DataType.INT64), name="embed"), ["n", 32]
    )
    recipe = dataclasses.replace(DYNAMIC, coverage="extended")
    changed, report = converted(b.model(), recipe)
    ids = np.array([5, 0, 32767])
    for level in LEVELS:
        np.testing.assert_array_equal(run(changed, {"ids": ids}, level)[0], decoded(table, 1, recipe)[ids])
    assert sum(value.const_value.nbytes for value in changed.graph.initializers.values()) < 1.1 * table.size
    assert report.weights[0].nodes == ("embed",)


def test_old_models_are_raised(tmp_path):
    storage.save(cnn(opset=13), tmp_path / "cnn.onnx")
    report = optimize(tmp_path / "cnn.onnx", STATIC, calibration=Calibration(images()))
    model = onnx.load(report.output)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == 21
    assert model.ir_version == 10
    assert report.output.endswith("cnn.fp8-static.onnx")


@pytest.mark.parametrize("weights", ["e4m3fn", "e3m4"])
def test_shared_weights_and_attributes_of_gemm(weights):
    b = graphs.Builder(17)
    w = b.constant("w", noise(16, 16))
    x = b.input("x", ["n", 16])
    y = b.op("Gemm", b.op("Gemm", x, w, name="a", alpha=0.25), w, name="b", transB=1)
    b.output(b.op("Gemm", y, w, b.constant("c", noise(16)), name="c", beta=2.0), ["n", 16])
    feeds = {"x": noise(4, 16)}
    changed, report = converted(b.model(), dataclasses.replace(STATIC, weight_format=weights, smooth=False), [feeds])
    assert decibels(run(b.model(), feeds)[0], run(changed, feeds)[0]) > 20
    assert sorted(weight.nodes for weight in report.weights) == [("a", "c"), ("b",)]


def test_inputs_that_hold_only_zeros():
    changed, _ = converted(product(), STATIC, [{"x": np.zeros((4, 64), np.float32)}])
    dynamic, _ = converted(product(), DYNAMIC)
    for model in (changed, dynamic):
        np.testing.assert_array_equal(run(model, {"x": np.zeros((2, 64), np.float32)})[0], 0)
    assert run(dynamic, {"x": np.zeros((0, 64), np.float32)})[0].shape == (0, 48)


@pytest.mark.parametrize("format", ACTIVATIONS)
@pytest.mark.parametrize("recipe", [STATIC, DYNAMIC], ids=lambda recipe: recipe.scheme)
@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e-44])
def test_strange_ranges(recipe, format, scale):
    recipe = dataclasses.replace(recipe, activation_format=format)
    x = noise(8, 64) * np.float32(scale)
    changed, _ = converted(product(), recipe, [{"x": x}] if recipe.scheme == "fp8-static" else None)
    (got,) = run(changed, {"x": x})
    assert np.isfinite(got).all()
    if scale > 1 and (recipe.scheme, format) != ("fp8-dynamic", "e5m2"):
        assert decibels(run(product(), {"x": x})[0] / scale, got / scale) > 20


@pytest.mark.parametrize("format", reference.LAYOUTS)
@pytest.mark.parametrize("largest", [0.0, 1e-45, 1e-30, 0.3, 1e5, 3e38])
def test_scales_are_numbers_and_so_is_what_they_scale(format, largest):
    scale = np.float32(activation_scale(largest, format))
    most = np.float32(reference.MINIFLOATS[format][np.isfinite(reference.MINIFLOATS[format])].max())
    assert scale >= np.finfo(np.float32).tiny
    assert np.isfinite(scale * most)
    if largest >= 1e-30:
        assert scale * most >= 0.5 * largest
    if format == "e5m2" and largest in (0.0, 0.3):
        assert scale == 1


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


@pytest.mark.parametrize("weights", ["e5m2", "e2m1"])
def test_restored_moments_are_nearer(tmp_path, weights):
    """Weights of few bits of mantissa, so that there is much to restore, decoded by type and by function."""
    storage.save(cnn(), tmp_path / "cnn.onnx")
    results = {}
    for restore in (False, True):
        recipe = dataclasses.replace(STATIC, weight_format=weights, restore_moments=restore, search=False)
        report = optimize(tmp_path / "cnn.onnx", recipe, tmp_path / "o.onnx", calibration=Calibration(images(16)))
        onnx.checker.check_model(report.output, full_check=True)
        model, changed = storage.load(tmp_path / "cnn.onnx"), storage.load(report.output)
        results[restore] = sum(np.square(run(model, x)[0] - run(changed, x)[0]).sum() for x in images(40)[16:])
    assert results[True] < results[False] / 2


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


@pytest.mark.parametrize("weights", ["e4m3fn", "e5m2", "e3m4", "e2m1"])
@pytest.mark.parametrize("format", ACTIVATIONS)
def test_the_same_on_our_kernels(format, weights):
    """One product, whose rounded operands are the same for all; sums of the kernels may be of bfloat16."""
    recipe = dataclasses.replace(DYNAMIC, activation_format=format, weight_format=weights)
    x = {"x": noise(5, 64)}
    changed, _ = converted(product(), recipe)
    (want,) = run(changed, x)
    proto = ir.to_proto(changed).SerializeToString()
    registered = options()
    register(registered)
    for session in (ort.InferenceSession(proto, registered), on_provider(proto)):
        np.testing.assert_allclose(session.run(None, x)[0], want, rtol=0, atol=1e-2 * np.abs(want).max())
    exact = on_provider(proto, accuracy_level=0)
    np.testing.assert_allclose(exact.run(None, x)[0], want, rtol=0, atol=1e-5 * np.abs(want).max())
    if weights in ("e4m3fn", "e5m2"):
        assert taken(exact) in (None, ["DequantizeLinear", "MatMul"])
