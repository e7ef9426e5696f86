"""Activations and weights as floating-point numbers of few bits: placement, and both schemes end to end."""

from __future__ import annotations

import dataclasses

import graphs
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from fp8 import (
    ACTIVATIONS,
    DYNAMIC,
    IDS,
    LEVELS,
    STATIC,
    WEIGHTS,
    cnn,
    converted,
    decoded,
    encoder,
    images,
    noise,
    product,
    rounded,
)
from int8 import decibels, run
from onnxpress.custom_ops import reference, register
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.conversion.pipeline import optimize
from onnxpress.optimizer.model_io import storage
from onnxpress.optimizer.passes.place_minifloat import activation_scale
from sessions import RUNS_FLOAT8_PRODUCTS, on_provider, options, taken

pytestmark = pytest.mark.skipif(not RUNS_FLOAT8_PRODUCTS, reason="ONNX Runtime before 1.32 refuses products of FLOAT8")


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
