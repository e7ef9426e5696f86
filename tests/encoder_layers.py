"""Whole layers of encoders: as products and norms for the kernels, and as graphs that exporters write."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir
from encoders import HEADS, HIDDEN, WIDTH
from graphs import Builder, weight
from onnxpress.custom_ops import reference

WIDE = 48


def made_layer(H=48, heads=3, width=16, F=80, seed=0, **settings) -> reference.EncoderLayer:
    """One of random weights."""
    rng = np.random.default_rng(seed)

    def product(K, N):
        codes = rng.integers(-127, 128, (K, N)).astype(np.int8)
        scales = (rng.uniform(0.5, 2, N) / (74 * K**0.5)).astype(np.float32)
        return reference.Product(codes, scales, rng.normal(size=N).astype(np.float32) * 0.1)

    def norm():
        return np.stack([rng.uniform(0.5, 1.5, H), rng.normal(size=H) * 0.1]).astype(np.float32)

    inner = heads * width
    return reference.EncoderLayer(
        heads=heads, scale=width**-0.5, qkv=product(H, 3 * inner), out=product(inner, H), up=product(H, F),
        down=product(F, H), norm1=norm(), norm2=norm(), **settings,
    )  # fmt: skip


def parts(layer: reference.EncoderLayer) -> list[np.ndarray]:
    """The constant inputs of the operator, in order."""
    out, down = dataclasses.astuple(layer.out), dataclasses.astuple(layer.down)
    return [
        *dataclasses.astuple(layer.qkv), *out, *layer.norm1, *dataclasses.astuple(layer.up), *down, *layer.norm2
    ]  # fmt: skip


@dataclasses.dataclass
class LayerModel:
    """A layer in float32, as exporters write it.

    Attributes:
        norm_first: Whether norms are ahead of the products.
        activation: "relu", "gelu", "gelu_tanh" or "tanh", which is none of ours.
        mask: Whether there is one of padding.
        bias: Whether products have one.
        turned: Whether the sums have the product first.
        shared: What else is an output: "hidden" between the halves, "up", or nothing.
        residual: What the attention is added to: "x" or "other".
        opset: Of the standard operators; below 17 norms are spelled out.
        reciprocal: Whether they are then, with Reciprocal and Mul in place of Div and Pow.
        epsilon: Of the second norm; 1e-12 of the first.
        layers: How many, one behind the other; only the first has the variants `residual` and `shared`.
    """

    norm_first: bool = False
    activation: str = "gelu"
    mask: bool = True
    bias: bool = True
    turned: bool = False
    shared: str = ""
    residual: str = "x"
    opset: int = 18
    epsilon: float = 1e-12
    reciprocal: bool = False
    layers: int = 1

    def model(self) -> ir.Model:
        """The graph: x [batch, sequence, HIDDEN] and perhaps attention_mask [batch, sequence] to one output y."""
        self.b = b = Builder(self.opset)
        x = b.input("x", ["batch", "sequence", HIDDEN])
        self.m = b.input("attention_mask", ["batch", "sequence"], ir.DataType.INT64) if self.mask else None
        other = b.input("other", ["batch", "sequence", HIDDEN]) if self.residual == "other" else x
        self.scope = ""
        h, up, y = self._layer(x, other)
        for layer in range(1, self.layers):
            self.scope = f"layer.{layer}/"
            y = self._layer(y, y)[2]
        b.output(y, ["batch", "sequence", HIDDEN])
        if self.shared:
            value = h if self.shared == "hidden" else up
            b.output(value, ["batch", "sequence", HIDDEN if self.shared == "hidden" else WIDE])
        return b.model()

    def _layer(self, x: ir.Value, residual: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """What is between the halves, what the first product of the perceptron makes, and the output."""
        context = self._attention(self._norm("norm1", x) if self.norm_first else x)
        h = self._sum(residual, self._product("out", context, HIDDEN, HIDDEN))
        h = h if self.norm_first else self._norm("norm1", h)
        up = self._product("up", self._norm("norm2", h) if self.norm_first else h, HIDDEN, WIDE)
        y = self._sum(h, self._product("down", self._activate(up), WIDE, HIDDEN))
        return h, up, y if self.norm_first else self._norm("norm2", y)

    def feeds(self, lengths=(9, 4, 1), seed: int = 0) -> dict[str, np.ndarray]:
        """Sequences of these lengths, padded."""
        rng = np.random.default_rng(seed)
        shape = (len(lengths), max(lengths), HIDDEN)
        made = {"x": rng.standard_normal(shape).astype(np.float32)}
        if self.mask:
            made["attention_mask"] = (np.arange(shape[1]) < np.array(lengths)[:, None]).astype(np.int64)
        if self.residual == "other":
            made["other"] = rng.standard_normal(shape).astype(np.float32)
        return made

    def _attention(self, x: ir.Value) -> ir.Value:
        b = self.b
        shape = self._constant("split", np.array([0, 0, HEADS, WIDTH]))
        q, k, v = (b.op("Reshape", self._product(name, x, HIDDEN, HIDDEN, True), shape) for name in ("q", "key", "v2"))
        q, v = (b.op("Transpose", part, perm=[0, 2, 1, 3]) for part in (q, v))
        scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 3, 1]))
        scores = b.op("Div", scores, self._constant("root", np.array(math.sqrt(WIDTH), np.float32)))
        if self.m is not None:
            if self.opset >= 13:
                wide = b.op("Cast", b.op("Unsqueeze", self.m, self._constant("axes", np.array([1, 2]))), to=1)
            else:
                wide = b.op("Cast", b.op("Unsqueeze", self.m, axes=[1, 2]), to=1)
            out = b.op("Sub", self._constant("one", np.array(1, np.float32)), wide)
            scores = b.op("Add", scores, b.op("Mul", out, self._constant("far", np.array(-1e4, np.float32))))
        axis = -1 if self.opset >= 13 else 3
        context = b.op("MatMul", b.op("Softmax", scores, axis=axis, name=f"{self.scope}softmax"), v)
        context = b.op("Transpose", context, perm=[0, 2, 1, 3])
        return b.op("Reshape", context, self._constant("merge", np.array([0, 0, HIDDEN])))

    def _product(self, name: str, x: ir.Value, K: int, N: int, biased: bool = False) -> ir.Value:
        seed = len(name) + sum(map(ord, self.scope))
        y = self.b.op("MatMul", x, self._constant(f"{name}.W", weight(K, N, seed)), name=f"{self.scope}{name}/MatMul")
        if not (self.bias or biased):
            return y
        return self.b.op("Add", y, self._constant(f"{name}.b", weight(1, N, seed)[0]), name=f"{self.scope}{name}/Add")

    def _norm(self, name: str, x: ir.Value) -> ir.Value:
        b, rng = self.b, np.random.default_rng(len(name) + sum(map(ord, self.scope)))
        scale = self._constant(f"{name}.scale", rng.uniform(0.5, 1.5, HIDDEN).astype(np.float32))
        shift = self._constant(f"{name}.shift", rng.normal(size=HIDDEN).astype(np.float32) * 0.1)
        epsilon = self.epsilon if name == "norm2" else 1e-12
        if self.opset >= 17:
            return b.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=epsilon, name=f"{self.scope}{name}")
        d = b.op("Sub", x, b.op("ReduceMean", x, axes=[-1]))
        two, small = (self._constant(f"{name}.{each}", np.array(each, np.float32)) for each in (2, epsilon))
        squares = b.op("Mul", d, d) if self.reciprocal else b.op("Pow", d, two)
        root = b.op("Sqrt", b.op("Add", b.op("ReduceMean", squares, axes=[-1]), small))
        y = b.op("Mul", d, b.op("Reciprocal", root)) if self.reciprocal else b.op("Div", d, root)
        return b.op("Add", b.op("Mul", y, scale), shift)

    def _sum(self, x: ir.Value, y: ir.Value) -> ir.Value:
        return self.b.op("Add", *((y, x) if self.turned else (x, y)))

    def _activate(self, x: ir.Value) -> ir.Value:
        b = self.b
        if self.activation == "relu":
            return b.op("Relu", x)
        if self.activation == "tanh":
            return b.op("Tanh", x)
        if self.activation == "gelu_tanh":
            return b.op("Gelu", x, approximate="tanh")
        root, one, half = (
            self._constant(f"number{value}", np.array(value, np.float32)) for value in (math.sqrt(2), 1.0, 0.5)
        )
        return b.op("Mul", b.op("Mul", x, b.op("Add", b.op("Erf", b.op("Div", x, root)), one)), half)

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        return self.b.constant(f"{self.scope}{name}", array)
