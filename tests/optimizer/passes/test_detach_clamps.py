"""Products on codes with results in float, before a Relu or Clip that ONNX Runtime would take for part of them."""

from __future__ import annotations

import graphs
import numpy as np
import onnx
import pytest
from onnxpress.optimizer import optimize
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.settings.recipe import Recipe
from rewrites import LEVELS, run

RNG = np.random.default_rng(0)
DATA = [{"x": RNG.standard_normal((16, 64)).astype(np.float32)} for _ in range(4)]


def bound(b, y, kind):
    low, high = (b.constant(name, np.float32(value)) for name, value in (("low", 0.1), ("high", 1)))
    if kind == "found":
        low = b.op("ReduceMin", y, keepdims=0)
    bounds = {"Relu": (), "both": (low, high), "low": (low,), "high": (None, high), "found": (low,)}
    return b.op("Relu" if kind == "Relu" else "Clip", y, *bounds[kind], name="bound")


@pytest.mark.parametrize("clean_up", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["Relu", "both", "low", "high", "found"])
@pytest.mark.parametrize("dead", [False, True])
def test_the_product_runs_on_codes(kind, bias, clean_up, dead, tmp_path):
    """Also where somebody else reads the bound, or the product, whose own result nobody reads."""
    b = graphs.Builder(17)
    x = b.input("x", ["n", 64])
    y = b.op("MatMul", x, b.constant("W", graphs.weight(64, 96)), name="product")
    if bias:
        y = b.op("Add", y, b.constant("bias", graphs.weight(1, 96)[0]), name="sum")
    bounded = bound(b, y, kind)
    for value in (y, bounded) if dead else ():
        b.op("Exp", b.op("Neg", value))
    b.output(b.op("Tanh", bounded), ["n", 96])
    model = b.model()
    (want,) = run(model, DATA[0])
    recipe = Recipe(scheme="int8-static", reduce_range=True, clean_up=clean_up)
    report = optimize(model, recipe, tmp_path / "out.onnx", calibration=Calibration(DATA))
    assert report.rewritten == {"MatMul": 1}
    assert {"MatMulIntegerToFloat", "QGemm"} & report.details["kernels"].keys()
    onnx.checker.check_model(onnx.load(report.output), full_check=True)
    for level in LEVELS:
        (got,) = run((tmp_path / "out.onnx").read_bytes(), DATA[0], level)
        assert np.sqrt(np.square(got - want).mean()) < 0.03
