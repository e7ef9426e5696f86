"""Small models, data and references for schemes of FP8 activations."""

from __future__ import annotations

import graphs
import numpy as np
import onnx
import onnx_ir as ir
from onnxpress.custom_ops import reference
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.conversion.pipeline import optimize
from onnxpress.optimizer.passes.place_minifloat import activation_scale
from onnxpress.optimizer.planning.plan_minifloat import plan_minifloat
from onnxpress.optimizer.quantization.round_weight import round_weight
from onnxpress.optimizer.settings.recipe import Recipe

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
