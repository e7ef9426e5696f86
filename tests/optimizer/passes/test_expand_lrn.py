"""LRN in parts computes the same; what is left of it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import Builder
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.conversion.pipeline import optimize
from onnxpress.optimizer.passes.expand_lrn import ExpandLrn
from onnxpress.optimizer.settings.recipe import Recipe
from rewrites import rewritten

X = {"x": 3 * np.random.default_rng(0).standard_normal((2, 7, 4, 5)).astype(np.float32)}
SHAPE = ["n", 7, "h", "w"]


def normalized(opset=13, dtype=ir.DataType.FLOAT, **attributes):
    b = Builder(opset)
    b.output(b.op("LRN", b.input("x", SHAPE, dtype), name="lrn", **attributes), SHAPE, dtype)
    return b.model()


@pytest.mark.parametrize("size", [1, 3, 5, 9, 15])
@pytest.mark.parametrize("beta", [0.75, 0.5])
def test_parts(size, beta):
    """Among them a size that goes beyond all seven channels."""
    power = ["Sqrt", "Sqrt", "Mul"] if beta == 0.75 else ["Pow"]
    types = rewritten(normalized(size=size, beta=beta, alpha=0.5, bias=2.0), ExpandLrn(), X, depth=2 * size + 8)
    assert types == ["Mul", "Unsqueeze", "AveragePool", "Squeeze", "Mul", "Add", *power, "Div"]


def test_defaults():
    rewritten(normalized(size=3), ExpandLrn(), X, depth=16)


@pytest.mark.parametrize("settings", [{"opset": 12}, {"dtype": ir.DataType.FLOAT16}, {"size": 4}])
def test_left(settings):
    assert not ExpandLrn()(normalized(**{"size": 3, **settings}))


def test_int8_around_it(tmp_path):
    b = Builder(13)
    w = np.random.default_rng(1).standard_normal((2, 7, 7, 1, 1)).astype(np.float32)
    y = b.op("Conv", b.input("x", SHAPE), b.constant("w0", w[0]), name="first")
    y = b.op("LRN", b.op("Relu", y), size=5, name="lrn")
    b.output(b.op("Conv", y, b.constant("w1", w[1]), name="second"), SHAPE)
    report = optimize(b.model(), Recipe(scheme="int8-static"), tmp_path / "a.onnx", calibration=Calibration([X]))
    kernels = report.details["kernels"]
    assert kernels["QLinearConv"] == 2
    assert "LRN" not in kernels
    accuracy = report.accuracy
    assert (accuracy.metric, accuracy.float32) == ("cosine of outputs", 1.0)
    assert accuracy.value == report.details["metric"]["int8"] > 0.999
