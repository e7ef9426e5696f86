"""Models whose opset cannot be raised keep it, and get forms that it has."""

from __future__ import annotations

import graphs
import numpy as np
import onnx
import pytest
from onnxpress.optimizer import OnnxpressError, optimize
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.recipe import Recipe
from rewrites import LEVELS, run

RNG = np.random.default_rng(0)
DATA = [
    {"x": RNG.standard_normal((1, 8, 6, 6)).astype(np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}
    for _ in range(4)
]


def noise(*shape):
    return (0.2 * RNG.standard_normal(shape)).astype(np.float32)


def resized():
    """Of opset 10, in which the nearest pixel depends on scales that nobody knows here."""
    b = graphs.Builder(10)
    x = b.op("Conv", b.input("x", [1, 8, "h", "w"]), b.constant("K", noise(8, 8, 3, 3)), name="conv")
    x = b.op("Resize", b.op("Relu", x), b.input("scales", [4]), mode="nearest")
    x = b.op("Reshape", b.op("GlobalAveragePool", x), b.constant("shape", np.array([1, 8])))
    y = b.op("MatMul", b.op("Tanh", x), b.constant("W", noise(8, 256)), name="first")
    b.output(b.op("MatMul", b.op("Tanh", y), b.constant("V", noise(256, 64)), name="second"), [1, 64])
    return b.model()


@pytest.mark.parametrize("scheme", ["int8-static", "int8-dynamic", "int8"])
def test_other_forms(scheme, tmp_path):
    model = resized()
    wanted = run(model, DATA[0])[0]
    data = Calibration(DATA) if scheme == "int8-static" else None
    report = optimize(model, Recipe(scheme=scheme), tmp_path / "out.onnx", calibration=data)
    assert report.rewritten["MatMul"] == 2
    proto = onnx.load(report.output)
    assert {entry.domain: entry.version for entry in proto.opset_import} == {"": 10, "com.microsoft": 1}
    for level in LEVELS:
        found = run((tmp_path / "out.onnx").read_bytes(), DATA[0], level)[0]
        assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()
    if scheme == "int8-static":
        assert report.details["kernels"]["QLinearConv"] == 1
        assert report.details["kernels"]["MatMulIntegerToFloat"] == 2


@pytest.mark.parametrize("scheme", ["fp8-static", "fp8-dynamic", "sparse"])
def test_what_no_form_takes_is_left(scheme):
    data = Calibration(DATA) if scheme == "fp8-static" else None
    settings = {} if scheme == "sparse" else {"first_and_last": True}
    with pytest.raises(OnnxpressError, match="2 MatMul: opset 10 cannot be raised to 13: node 'Resize_2'"):
        optimize(resized(), Recipe(scheme=scheme, **settings), calibration=data)


@pytest.mark.parametrize("scheme", ["fp8-static", "fp8-dynamic"])
def test_formats_that_have_no_type_yet_are_functions(scheme, tmp_path):
    """GroupNormalization of groups whose scales are not known cannot become the one of channels in opset 21."""
    b = graphs.Builder(18)
    x, scales = b.input("x", [1, 8, 6, 6]), b.input("scales", [4])
    half = b.op("Slice", scales, b.constant("from", np.array([0])), b.constant("to", np.array([2])), name="half")
    x = b.op("GroupNormalization", x, half, b.constant("bias", noise(2)), num_groups=2, name="norm")
    x = b.op("Conv", x, b.constant("K", noise(8, 8, 3, 3)), name="conv")
    b.output(b.op("MatMul", b.op("Flatten", x), b.constant("W", noise(128, 64)), name="product"), [1, 64])
    model = b.model()
    wanted = run(model, DATA[0])[0]
    data = Calibration(DATA) if scheme == "fp8-static" else None
    report = optimize(model, Recipe(scheme=scheme, first_and_last=True), tmp_path / "out.onnx", calibration=data)
    assert report.rewritten == {"Conv": 1, "MatMul": 1}
    assert onnx.load(report.output).opset_import[0].version == 18
    for level in LEVELS:
        found = run((tmp_path / "out.onnx").read_bytes(), DATA[0], level)[0]
        assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()
