"""Ops of minifloats in standard ops.

Codes of weights look their values up in a table. Activations are rounded without codes: within [2^e, 2^(e + 1)) numbers
of m mantissa bits are 2^(e - m) apart, and comparisons with powers of two find that step exactly.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..reference import E8M0, LAYOUTS, MINIFLOATS, PLANES, block_codes, minifloat_bits
from .body import Body, Size, function
from .nbits import unpack

_FLOAT, _INT32 = int(ir.DataType.FLOAT), int(ir.DataType.INT32)


def _decode(
    body: Body, packed: ir.Value, scales: ir.Value, lead: tuple[int, int], size: Size, format: str, scale: ir.DataType
) -> ir.Value:
    """Rows of a weight, each with the codes that pad its last block; `lead` are rows and blocks, 0 as they come."""
    codes = unpack(body, packed, lead, size, minifloat_bits(format))
    values = body.op("Gather", body.constant(MINIFLOATS[format]), body.op("Cast", codes, to=_INT32))
    factor = scales
    if scale == ir.DataType.UINT8:
        factor = body.op("Gather", body.constant(E8M0), body.op("Cast", factor, to=_INT32))
    elif scale != ir.DataType.FLOAT:
        factor = body.op("Cast", factor, to=_FLOAT)
    weight = body.op("Mul", values, body.op("Reshape", factor, body.shape(*lead, 1)))
    return body.op("Reshape", weight, body.shape(lead[0], -1))


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

    weight = _decode(body, inputs[1], inputs[2], (N, blocks), size, format, scale)
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
    return function("MatMulMiniFloat", "_".join(parts), body, inputs, [y], attributes, opset)


def _bytes(body: Body, size: Size, format: str) -> Size:
    """Of a block."""
    total: Size = 0
    for width in PLANES[minifloat_bits(format)]:
        total = body.add(total, body.ceil_divide(size, 8 // width))
    return total


def dequantize_minifloat(*, format: str, scale: ir.DataType = ir.DataType.FLOAT, opset: int = 18) -> ir.Function:
    """Body of `onnxpress::DequantizeMiniFloat`: a weight as float32 in the shape of the attribute `shape`.

    It is one for all sizes, so ONNX Runtime before 1.27, which takes the first of several functions of a name, runs
    models of one format. Whatever its inputs are constants of is constant: ONNX Runtime decodes it once.

    Args:
        format: A key of `reference.MINIFLOATS`.
        scale: Type of the scales: FLOAT, FLOAT16, BFLOAT16, or UINT8 for codes of `reference.E8M0`.
        opset: That of the model, from MIN_OPSET on; the checker wants functions to have the same.

    Returns:
        The function, with inputs codes and scales as B and scales of MatMulMiniFloat with N = shape[0] and K the
        product of the other sizes; its `overload` is unique for these arguments.
    """
    body = Body()
    packed, scales = ir.Value(name="codes"), ir.Value(name="scales")
    shape = body.attribute("shape", ir.AttributeType.INTS)
    block = body.op("Reshape", body.attribute("block_size", ir.AttributeType.INT), body.shape(1))
    K = body.op("ReduceProd", body.slice(shape, 1, 2**31 - 1), keepdims=1)
    size = body.op("Where", body.op("Equal", block, body.shape(0)), K, block)
    size = body.op("Max", size, body.shape(1))  # a product of hostile sizes may be 0, and no CPU divides by it
    # The sizes that must be: whatever else comes, Reshape refuses.
    lead = body.slice(shape, 0, 1), body.size(body.ceil_divide(K, size))
    in_full = body.op("Reshape", packed, body.op("Concat", *lead, body.size(_bytes(body, size, format)), axis=0))
    factor = body.op("Reshape", scales, body.op("Concat", *lead, axis=0))
    rows = _decode(body, in_full, factor, (0, 0), size, format, scale)
    weight = body.op("Reshape", body.slice(rows, 0, K), shape)
    overload = f"{format}_scale_{scale.name.lower()}"
    return function(
        "DequantizeMiniFloat", overload, body, [packed, scales], [weight], {"format": format, "block_size": 0}, opset,
        {"shape": ir.AttributeType.INTS},
    )  # fmt: skip


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
    return function("RoundMiniFloat", format, body, inputs, [y], {"format": format}, opset)
