"""Ops of minifloats in standard ops.

Codes of weights look their values up in a table. Activations are rounded without codes: within [2^e, 2^(e + 1)) numbers
of m mantissa bits are 2^(e - m) apart, and comparisons with powers of two find that step exactly.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..reference import E8M0, LAYOUTS, MINIFLOATS, block_codes, minifloat_bits
from .body import Body, function
from .nbits import unpack

_FLOAT, _INT32 = int(ir.DataType.FLOAT), int(ir.DataType.INT32)


def matmul_minifloat(
    *,
    format: str,
    K: int,
    N: int,
    block_size: int = 0,
    activation: ir.DataType = ir.DataType.FLOAT,
    scale: ir.DataType = ir.DataType.FLOAT,
    bias: bool = False,
    opset: int = 18,
) -> ir.Function:
    """Body of `onnxpress::MatMulMiniFloat`: the weight is decoded to float32, then multiplied.

    The body computes what accuracy_level 0 does; at level 3 the kernel may round activations to bfloat16.

    Args:
        format: A key of `reference.MINIFLOATS`.
        K: Length of the reduction.
        N: Output channels.
        block_size: Codes in a block; 0 for one block of K.
        activation: Type of A, bias and the output: FLOAT or FLOAT16.
        scale: Type of the scales: FLOAT, FLOAT16, BFLOAT16, or UINT8 for codes of `reference.E8M0`.
        bias: Whether the node has a bias.
        opset: That of the model, from MIN_OPSET on; the checker wants functions to have the same.

    Returns:
        The function, with inputs A, B, scales and bias as the op has; its `overload` is unique for these arguments.
    """
    size = block_codes(block_size, K)
    blocks = -(-K // size)
    body = Body()
    inputs = [ir.Value(name=name) for name in ("A", "B", "scales", "bias")][: 4 if bias else 3]

    codes = unpack(body, inputs[1], (N, blocks), size, minifloat_bits(format))
    values = body.op("Gather", body.constant(MINIFLOATS[format]), body.op("Cast", codes, to=_INT32))
    factor = inputs[2]
    if scale == ir.DataType.UINT8:
        factor = body.op("Gather", body.constant(E8M0), body.op("Cast", factor, to=_INT32))
    elif scale != ir.DataType.FLOAT:
        factor = body.op("Cast", factor, to=_FLOAT)
    weight = body.op("Mul", values, body.op("Reshape", factor, body.shape(N, blocks, 1)))
    weight = body.op("Reshape", weight, body.shape(N, blocks * size))
    if blocks * size != K:
        weight = body.slice(weight, 0, K)
    weight = body.op("Transpose", weight)
    half = activation != ir.DataType.FLOAT
    y = body.op("MatMul", body.op("Cast", inputs[0], to=_FLOAT) if half else inputs[0], weight)
    if bias:
        y = body.op("Add", y, body.op("Cast", inputs[3], to=_FLOAT) if half else inputs[3])
    if half:
        y = body.op("Cast", y, to=int(activation))

    parts = [format, f"k{K}", f"n{N}", f"block{block_size}", activation.name.lower(), f"scale_{scale.name.lower()}"]
    parts += ["bias"] * bias
    attributes: dict[str, int | str] = {
        "K": K, "N": N, "format": format, "block_size": block_size, "accuracy_level": 0,
    }  # fmt: skip
    return function("MatMulMiniFloat", "_".join(parts), body, inputs, y, attributes, opset)


def round_minifloat(*, format: str, opset: int = 18) -> ir.Function:
    """Body of `onnxpress::RoundMiniFloat`, exactly `reference.round_minifloat`.

    Args:
        format: A key of `reference.LAYOUTS`.
        opset: That of the model, from MIN_OPSET on; the checker wants functions to have the same.

    Returns:
        The function, with inputs X, float32 of any shape, and scale, float32 [], which divides X before it is rounded
        and multiplies it behind; its `overload` is the format.
    """
    layout = LAYOUTS[format]
    most = float(max(number for number in MINIFLOATS[format] if np.isfinite(number)))
    body = Body()
    inputs = [ir.Value(name=name) for name in ("X", "scale")]

    def constant(number: float) -> ir.Value:
        return body.constant(np.array(number, np.float32))

    x = body.op("Clip", body.op("Div", *inputs), constant(-most), constant(most))
    magnitude = body.op("Abs", x)
    least = 1 - layout.bias
    step = constant(2.0 ** (least - layout.mantissa))
    for exponent in range(least + 1, int(np.frexp(most)[1])):
        reached = body.op("GreaterOrEqual", magnitude, constant(2.0**exponent))
        step = body.op("Where", reached, constant(2.0 ** (exponent - layout.mantissa)), step)
    rounded = body.op("Mul", body.op("Round", body.op("Div", x, step)), step)
    y = body.op("Mul", rounded, inputs[1])
    return function("RoundMiniFloat", format, body, inputs, y, {"format": format}, opset)
