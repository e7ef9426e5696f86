"""int8-static from end to end: a model and data in, a QDQ model and a report out."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from graphs import Builder
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.calibration.collect import collect
from onnxpress.optimizer.conversion.pipeline import optimize
from onnxpress.optimizer.errors import OnnxpressError, UsageError
from onnxpress.optimizer.families.calibrated.convert import wanted
from onnxpress.optimizer.model_io import storage
from onnxpress.optimizer.passes.clean_up import CleanUp
from onnxpress.optimizer.passes.preparation import prepare
from onnxpress.optimizer.settings.recipe import Recipe
from small_cnn import SIZE, STATIC, cnn, images, noise, outputs


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "cnn.onnx"
    storage.save(cnn(), file)
    return file


def test_conversion_and_report(path):
    report = optimize(path, STATIC, calibration=Calibration(images()))
    onnx.checker.check_model(report.output, full_check=True)
    assert report.output.endswith("cnn.int8-static.onnx")
    assert report.rewritten["Conv"] == 3
    assert report.details["kernels"]["QLinearConv"] == 3
    assert report.details["kernels"]["QGemm"] == 1
    metric = report.details["metric"]
    assert 0.99 < metric["int8"] <= metric["float32"] == pytest.approx(1)
    a, b = outputs(path, images(20)[6:]), outputs(report.output, images(20)[6:])
    assert 0 < np.square(a - b).sum() < 1e-3 * np.square(a).sum()
    assert {weight.name: weight.nodes for weight in report.weights}["w1"] == ("conv1",)
    assert set(json.loads(report.to_json())["worst"]) <= {"conv0", "conv1", "conv2", "head"}


def test_report_of_a_weight_that_two_nodes_read(tmp_path):
    model = cnn()
    conv = next(node for node in model.graph if node.name == "conv1")
    conv.replace_input_with(1, model.graph.initializers["w0"])
    storage.save(model, tmp_path / "cnn.onnx")
    report = optimize(tmp_path / "cnn.onnx", STATIC, calibration=Calibration(images()))
    assert sorted(weight.nodes for weight in report.weights) == [("conv0",), ("conv1",), ("conv2",), ("head",)]


@pytest.mark.parametrize("method", ["minmax", "moving-average", "percentile", "entropy", "mse"])
def test_range_methods(path, tmp_path, method):
    recipe = Recipe(scheme="int8-static", range_method=method)
    report = optimize(path, recipe, tmp_path / "out.onnx", calibration=Calibration(images()))
    assert report.details["metric"]["int8"] > 0.99


@pytest.mark.parametrize("settings", [
    {"per_channel": False}, {"reduce_range": True}, {"activation_type": "int8", "symmetric": True},
    {"equalize": True}, {"correct_bias": False, "restore_moments": False, "smooth": False},
])  # fmt: skip
def test_settings(path, tmp_path, settings):
    report = optimize(
        path, Recipe(scheme="int8-static", range_method="minmax", **settings), tmp_path / "out.onnx",
        calibration=Calibration(images()),
    )  # fmt: skip
    onnx.checker.check_model(report.output, full_check=True)
    a, b = outputs(path, images()), outputs(report.output, images())
    assert np.square(a - b).sum() < 5e-3 * np.square(a).sum()
    for value in onnx.load(report.output).graph.initializer:
        codes = onnx.numpy_helper.to_array(value)
        if settings.get("reduce_range") and codes.dtype == np.int8 and codes.ndim > 1:
            assert np.abs(codes).max() <= 63


def encoder() -> ir.Model:
    """A norm with two channels of outliers that a product and a residual read."""
    b = Builder(17)
    gain = np.ones(64, np.float32)
    gain[[3, 40]] = 60
    x = b.op("LayerNormalization", b.input("x", ["n", 64]), b.constant("gain", gain), name="norm")
    y = b.op("MatMul", x, b.constant("w", noise(64, 64) / 8 / gain[:, None]), name="product")
    b.output(b.op("Add", x, y), ["n", 64])
    b.output(y, ["n", 64])
    return b.model()


def test_a_mul_smooths_where_it_is_asked_for(tmp_path):
    storage.save(encoder(), tmp_path / "encoder.onnx")
    data = [{"x": noise(32, 64, seed=i)} for i in range(4)]
    float32 = ort.InferenceSession(str(tmp_path / "encoder.onnx"))
    noises, muls = {}, {}
    for smooth in (None, True, False):
        recipe = dataclasses.replace(STATIC, smooth=smooth)
        report = optimize(tmp_path / "encoder.onnx", recipe, tmp_path / "out.onnx", calibration=Calibration(data))
        int8 = ort.InferenceSession(report.output)
        noises[smooth] = np.mean([np.square(int8.run(None, x)[1] - float32.run(None, x)[1]).mean() for x in data])
        muls[smooth] = sum(node.op_type == "Mul" for node in onnx.load(report.output).graph.node)
    assert muls == {None: 0, True: 1, False: 0}
    assert noises[True] < noises[None] / 10
    assert noises[None] == noises[False]


def test_restored_moments_are_nearer(path, tmp_path):
    results = {}
    for restore in (False, True):
        recipe = dataclasses.replace(
            STATIC, per_channel=False, correct_bias=False, method="rtn", restore_moments=restore
        )
        report = optimize(path, recipe, tmp_path / "out.onnx", calibration=Calibration(images(16)))
        a, b = outputs(path, images(40)[16:]), outputs(report.output, images(40)[16:])
        results[restore] = np.square(a - b).sum()
    assert results[True] < results[False] / 3


def test_same_data_give_the_same_file(path, tmp_path):
    for name in "ab":
        optimize(path, STATIC, tmp_path / f"{name}.onnx", calibration=Calibration(images()))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_statistics_in_place_of_data(path, tmp_path):
    recipe = dataclasses.replace(STATIC, method="rtn", restore_moments=False)
    model = storage.load(path)
    CleanUp()(model)
    prepare(model)
    collect(model, images(), wanted(model, recipe)).save(tmp_path / "stats.npz")
    optimize(path, recipe, tmp_path / "a.onnx", calibration=Calibration(statistics=tmp_path / "stats.npz"))
    optimize(path, recipe, tmp_path / "b.onnx", calibration=Calibration(images()))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def statistics_of(path):
    model = storage.load(path)
    CleanUp()(model)
    prepare(model)
    return Calibration(statistics=collect(model, images(), wanted(model, STATIC)))


@pytest.mark.parametrize(
    "key", ["max_drop", "only_if_faster", "smooth", "method", "equalize", "restore_moments", "metric"]
)
def test_what_runs_models_is_refused_with_statistics_alone(path, key):
    values = {"max_drop": 0.1, "metric": "reading", "method": "gptq"}
    asked = dataclasses.replace(STATIC, **{key: values.get(key, True)})
    with pytest.raises(UsageError, match=f"^{key}: runs models on data.*give calibration"):
        optimize(path, asked, calibration=statistics_of(path))


def test_what_statistics_alone_leave_out_is_told(path):
    rows = dict(optimize(path, STATIC, calibration=statistics_of(path)).rows)
    assert rows["skipped"] == "smoothing, GPTQ and restoring of moments, for which there must be data"
    declined = dataclasses.replace(STATIC, smooth=False, method="rtn", restore_moments=False)
    for recipe, calibration in ((declined, statistics_of(path)), (STATIC, Calibration(images()))):
        assert "skipped" not in dict(optimize(path, recipe, calibration=calibration).rows)


def test_statistics_of_another_model(path, tmp_path):
    other = cnn(2)
    statistics = collect(other, images(), wanted(other, STATIC))
    with pytest.raises(OnnxpressError):
        optimize(path, STATIC, tmp_path / "out.onnx", calibration=Calibration(statistics=statistics))
    assert not (tmp_path / "out.onnx").exists()


def test_a_model_in_memory_is_changed():
    model = cnn()
    optimize(model, STATIC, calibration=Calibration(images()))
    assert sum(node.op_type == "DequantizeLinear" for node in model.graph) > 3


@pytest.mark.parametrize(("asked", "seen"), [(None, 6), (4, 4), (6, 6), (9, 6)])
def test_too_few_samples_are_told(path, tmp_path, asked, seen):
    report = optimize(path, STATIC, tmp_path / "o.onnx", calibration=Calibration(images(), samples=asked))
    assert report.details["samples"] == seen
    assert dict(report.rows)["calibrated on"] == f"{seen} samples of calibration data"
    told = [warning for warning in report.warnings if "samples" in warning]
    assert told == (["calibration data: 6 samples, and 9 were asked for"] if asked == 9 else [])


@pytest.mark.parametrize("metric", ["readin", "reading", "nowhere:function"])
def test_a_metric_that_cannot_be_is_refused_before_anything_is_observed(path, metric):
    """Of the data the first sample may be read, which the model is checked on."""
    read = []

    def counted():
        for sample in images():
            read.append(sample)
            yield sample

    with pytest.raises(UsageError):
        optimize(path, dataclasses.replace(STATIC, metric=metric), calibration=Calibration(counted))
    assert len(read) <= 1


def test_no_data(path):
    with pytest.raises(UsageError, match="give calibration"):
        optimize(path, STATIC)


def test_data_for_a_scheme_without(path):
    with pytest.raises(UsageError, match="data: scheme int4 reads no calibration data with these settings"):
        optimize(path, Recipe(method="rtn"), calibration=Calibration(images()))


@pytest.mark.parametrize(("feed", "text"), [
    ({"x": np.full((1, 8, SIZE, SIZE), np.nan, np.float32)}, "x"),
    ({"y": noise(1, 8, SIZE, SIZE)}, "x"),
    ({"x": noise(1, 8, SIZE)}, "x"),
    ({"x": noise(1, 8, SIZE, SIZE).astype(np.int32)}, "int32"),
])  # fmt: skip
def test_data_that_does_not_fit(path, tmp_path, feed, text):
    with pytest.raises(OnnxpressError, match=text):
        optimize(path, STATIC, tmp_path / "out.onnx", calibration=Calibration([feed]))
    assert not (tmp_path / "out.onnx").exists()


def test_no_samples(path):
    with pytest.raises(OnnxpressError):
        optimize(path, STATIC, calibration=Calibration([]))


def test_huge_range(path):
    data = [{"x": noise(1, 8, SIZE, SIZE) * np.float32(1e30)}]
    with pytest.raises(OnnxpressError, match="x: its values reach"):
        optimize(path, STATIC, calibration=Calibration(data))


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e10])
def test_strange_ranges(tmp_path, scale):
    """Tensors of zeros, of numbers that vanish and of large ones."""
    storage.save(cnn(), tmp_path / "cnn.onnx")
    data = [{"x": noise(1, 8, SIZE, SIZE) * np.float32(scale)}]
    report = optimize(tmp_path / "cnn.onnx", STATIC, calibration=Calibration(data))
    assert np.isfinite(outputs(report.output, data)).all()
    for value in onnx.load(report.output).graph.initializer:
        array = onnx.numpy_helper.to_array(value)
        assert np.isfinite(array).all()
        if "_scale" in value.name:
            assert (array >= np.finfo(np.float32).tiny).all()


def test_nothing_to_quantize(tmp_path):
    b = Builder(17)
    b.output(b.op("Relu", b.input("x", [1, 4])), [1, 4])
    storage.save(b.model(), tmp_path / "relu.onnx")
    with pytest.raises(OnnxpressError, match="nothing to quantize"):
        optimize(tmp_path / "relu.onnx", STATIC, calibration=Calibration([{"x": noise(1, 4)}]))


def test_quantizing_twice_is_refused(path, tmp_path):
    optimize(path, STATIC, tmp_path / "int8.onnx", calibration=Calibration(images()))
    with pytest.raises(OnnxpressError, match="already quantized"):
        optimize(tmp_path / "int8.onnx", STATIC, tmp_path / "twice.onnx", calibration=Calibration(images()))


def test_dead_branch(tmp_path):
    model = cnn()
    dead = ir.node("Conv", [model.graph.inputs[0], model.graph.initializers["w0"]], name="dead")
    dead.outputs[0].name = "dead_out"
    model.graph.append(dead)
    storage.save(model, tmp_path / "cnn.onnx")
    for clean in (True, False):
        recipe = Recipe(scheme="int8-static", clean_up=clean)
        report = optimize(tmp_path / "cnn.onnx", recipe, calibration=Calibration(images()))
        assert np.isfinite(outputs(report.output, images())).all()


def test_the_report_tells_data_that_never_changes(path, tmp_path):
    same = [{"x": np.full((1, 8, SIZE, SIZE), 2, np.float32)}] * 3
    warnings = optimize(path, STATIC, tmp_path / "out.onnx", calibration=Calibration(same)).warnings
    assert any("input 'x' is 2 everywhere in all 3 samples" in warning for warning in warnings)
    assert optimize(path, STATIC, tmp_path / "out.onnx", calibration=Calibration(images())).warnings == ()


def test_the_report_tells_tensors_that_never_change(tmp_path):
    model = cnn()
    conv = next(node for node in model.graph if node.name == "conv1")
    bias = conv.inputs[2]
    bias.const_value = ir.tensor(np.full(8, -1e3, np.float32), name=bias.name)  # nothing passes the Relu behind it
    storage.save(model, tmp_path / "cnn.onnx")
    report = optimize(tmp_path / "cnn.onnx", STATIC, calibration=Calibration(images()))
    assert any(warning.startswith("tensor 'relu1_out' holds one value") for warning in report.warnings)


def test_the_report_says_what_the_cosine_was_measured_on(path):
    rows = dict(optimize(path, STATIC, calibration=Calibration(images())).rows)
    assert rows["accuracy"].endswith("on the first 6 batches of the calibration data")
