"""A layer of a transformer encoder in standard ops."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from .body import Body, function

_FLOAT, _INT32, _UINT8 = int(ir.DataType.FLOAT), int(ir.DataType.INT32), int(ir.DataType.UINT8)
INPUTS = (
    "x", "qkv", "qkv_scales", "qkv_bias", "out", "out_scales", "out_bias", "norm1_scale", "norm1_shift", "up",
    "up_scales", "up_bias", "down", "down_scales", "down_bias", "norm2_scale", "norm2_shift", "mask",
)  # fmt: skip


class _Layer:
    """Writes the parts of a layer."""

    def __init__(self, body: Body, inputs: dict[str, ir.Value], epsilon: float, opset: int) -> None:
        self._body, self._inputs, self._epsilon, self._opset = body, inputs, epsilon, opset

    def product(self, x: ir.Value, name: str) -> ir.Value:
        """Rows rounded to uint8, times an int8 weight, plus a bias."""
        body = self._body
        codes, scale, point = self._rounded(x)
        wide = body.op("Cast", self._inputs[name], to=_INT32)
        # With weights of int8, ONNX Runtime's product saturates on CPUs without VNNI.
        weight = body.op("Cast", body.op("Add", wide, body.constant(np.array(128, np.int32))), to=_UINT8)
        zero, middle = (body.constant(np.array(number, np.uint8)) for number in (0, 128))
        sums = body.op("MatMulInteger", codes, weight, zero, middle)
        ones = body.op("ReduceSum", wide, body.shape(0), keepdims=0)
        exact = body.op("Sub", sums, body.op("Mul", body.op("Cast", point, to=_INT32), ones))
        y = body.op("Mul", body.op("Cast", exact, to=_FLOAT), body.op("Mul", scale, self._inputs[f"{name}_scales"]))
        return body.op("Add", y, self._inputs[f"{name}_bias"])

    def _rounded(self, x: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Codes, and scales and zero points [..., 1] as floats."""
        body = self._body
        zero, most = body.number(0), body.number(255)
        low = body.op("Min", body.reduce_last("ReduceMin", x, self._opset), zero)
        high = body.op("Max", body.reduce_last("ReduceMax", x, self._opset), zero)
        range_ = body.op("Sub", body.op("Div", high, most), body.op("Div", low, most))
        scale = body.op("Max", range_, body.number(1e-30))
        point = body.op("Round", body.op("Div", body.op("Neg", low), scale))
        codes = body.op("Add", body.op("Round", body.op("Div", x, scale)), point)
        return body.op("Cast", body.op("Max", body.op("Min", codes, most), zero), to=_UINT8), scale, point

    def norm(self, x: ir.Value, name: str) -> ir.Value:
        """A layer normalization."""
        body = self._body
        difference = body.op("Sub", x, body.reduce_last("ReduceMean", x, self._opset))
        variance = body.reduce_last("ReduceMean", body.op("Mul", difference, difference), self._opset)
        deviation = body.op("Sqrt", body.op("Add", variance, body.number(self._epsilon)))
        scaled = body.op("Mul", body.op("Div", difference, deviation), self._inputs[f"{name}_scale"])
        return body.op("Add", scaled, self._inputs[f"{name}_shift"])

    def attention(
        self, qkv: ir.Value, heads: int, width: int, scale: float, counted: ir.Value | None
    ) -> tuple[ir.Value, ir.Value]:
        """Of projections [batch, sequence, 3 heads * width]; `counted` [batch, sequence] are the keys that count.

        Returns:
            The context, and how much of each key each query of each head takes, [batch, heads, sequence, sequence].
        """
        body = self._body
        split = body.op("Reshape", qkv, body.shape(0, 0, 3, heads, width))  # without -1: a batch may be empty
        q, k, v = (
            body.op("Gather", body.op("Transpose", split, perm=[2, 0, 3, 1, 4]), body.constant(np.array(i)), axis=0)
            for i in range(3)
        )
        scores = body.op("MatMul", q, body.op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = body.op("Mul", scores, body.number(scale))
        if counted is not None:
            keys = body.op("Unsqueeze", counted, body.shape(1, 2))
            scores = body.op("Where", keys, scores, body.number(-math.inf))
        shares = body.op("Softmax", scores, axis=-1)
        context = body.op("Transpose", body.op("MatMul", shares, v), perm=[0, 2, 1, 3])
        return body.op("Reshape", context, body.shape(0, 0, heads * width)), shares

    def significance(self, shares: ir.Value, counted: ir.Value | None) -> ir.Value:
        """Sums over heads and the queries that count, [batch, sequence]; 0 of others."""
        body = self._body
        if counted is None:
            return body.op("ReduceSum", shares, body.shape(1, 2), keepdims=0)
        queries = body.op("Unsqueeze", counted, body.shape(1, 3))
        sums = body.op("ReduceSum", body.op("Where", queries, shares, body.number(0)), body.shape(1, 2), keepdims=0)
        return body.op("Where", counted, sums, body.number(0))


def encoder_layer(
    *,
    H: int,
    inner: int,
    F: int,
    heads: int,
    scale: float,
    epsilon: float,
    activation: str = "gelu",
    norm_first: bool = False,
    mask: bool = True,
    significance: bool = False,
    opset: int = 18,
) -> ir.Function:
    """Body of `onnxpress::EncoderLayer`, whose attention stays in float32, where the kernel rounds it to 8 bits.

    Args:
        H: Size of a token.
        inner: Of all heads.
        F: Between the two products of the perceptron.
        heads: How many.
        scale: What scores are multiplied by.
        epsilon: What norms add to the variance.
        activation: "relu", "gelu" or "gelu_tanh".
        norm_first: Whether norms are ahead of the products.
        mask: Whether the node has one.
        significance: Whether it has that output.
        opset: That of the model, from MIN_OPSET on; the checker wants functions to have the same.

    Returns:
        The function, with inputs `INPUTS`, the last one if `mask`; its `overload` is unique for these arguments.
    """
    body = Body()
    inputs = [ir.Value(name=name) for name in INPUTS[: None if mask else -1]]
    by_name = {value.name or "": value for value in inputs}
    layer = _Layer(body, by_name, epsilon, opset)
    x = by_name["x"]
    counted = body.op("Cast", by_name["mask"], to=int(ir.DataType.BOOL)) if mask else None

    qkv = layer.product(layer.norm(x, "norm1") if norm_first else x, "qkv")
    context, shares = layer.attention(qkv, heads, inner // heads, scale, counted)
    h = body.op("Add", x, layer.product(context, "out"))
    h = h if norm_first else layer.norm(h, "norm1")
    wide = body.activate(layer.product(layer.norm(h, "norm2") if norm_first else h, "up"), activation)
    y = body.op("Add", h, layer.product(wide, "down"))
    y = y if norm_first else layer.norm(y, "norm2")
    if counted is not None:
        y = body.op("Where", body.op("Unsqueeze", counted, body.shape(2)), y, body.number(0))

    attributes: dict[str, int | float | str] = {
        "num_heads": heads, "scale": scale, "epsilon": epsilon, "activation": activation,
        "norm_first": int(norm_first),
    }  # fmt: skip
    parts = [f"h{H}", f"inner{inner}", f"f{F}", f"heads{heads}", activation]
    parts += [np.float32(scale).tobytes().hex(), np.float32(epsilon).tobytes().hex()]
    parts += ["norm_first"] * norm_first + ["mask"] * mask + ["significance"] * significance
    outputs = [y, layer.significance(shares, counted)] if significance else [y]
    return function("EncoderLayer", "_".join(parts), body, inputs, outputs, attributes, opset)
