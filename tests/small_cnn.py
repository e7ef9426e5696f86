"""A small convolutional network, images for it, and what it makes of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from graphs import Builder
from onnxpress.optimizer.settings.recipe import Recipe

SIZE = 12
STATIC = Recipe(scheme="int8-static", range_method="minmax")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def images(count: int = 6) -> list[dict[str, np.ndarray]]:
    return [{"x": noise(1, 8, SIZE, SIZE, seed=i)} for i in range(count)]


def cnn(layers: int = 3) -> ir.Model:
    b = Builder(17)
    y = b.input("x", ["batch", 8, SIZE, SIZE])
    for i in range(layers):
        y = b.op(
            "Conv", y, b.constant(f"w{i}", noise(8, 8, 3, 3, seed=i) / 8), b.constant(f"b{i}", noise(8, seed=i)),
            name=f"conv{i}", pads=[1, 1, 1, 1],
        )  # fmt: skip
        y = b.op("Relu", y, name=f"relu{i}")
    y = b.op("Flatten", b.op("GlobalAveragePool", y))
    b.output(b.op("Gemm", y, b.constant("head", noise(8, 5)), name="head"), ["batch", 5])
    return b.model()


def outputs(path, feeds) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0] for feed in feeds])
