"""`onnxpress::MatMulNBits` in standard ops."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..reference import PLANES
from .body import Body, Size, function


def unpack(body: Body, packed: ir.Value, lead: tuple[int, ...], count: Size, bits: int) -> ir.Value:
    """Codes of `packed` uint8 [*lead, bytes] as float32 [*lead, count]; sizes of 0 are those that `packed` has.

    Mod is the mask here: bitwise And came to ONNX only with opset 18.
    """
    total: ir.Value | None = None
    begin: Size = 0
    shift = 0
    for width in PLANES[bits]:
        per_byte = 8 // width
        end = body.add(begin, body.ceil_divide(count, per_byte))
        column = body.op("Reshape", body.slice(packed, begin, end), body.shape(*lead, -1, 1))
        shifts = body.constant(np.arange(per_byte, dtype=np.uint8) * np.uint8(width))
        shifted = body.op("BitShift", column, shifts, direction="RIGHT")
        if width < 8:
            shifted = body.op("Mod", shifted, body.constant(np.array(2**width, np.uint8)))
        flat = body.op("Reshape", shifted, body.shape(*lead, -1))
        codes = body.op("Cast", body.slice(flat, 0, count), to=int(ir.DataType.FLOAT))
        if shift:
            codes = body.op("Mul", codes, body.constant(np.array(2.0**shift, np.float32)))
        total = codes if total is None else body.op("Add", total, codes)
        begin, shift = end, shift + width
    assert total is not None
    return total


def matmul_nbits(
    *,
    bits: int,
    K: int,
    N: int,
    block_size: int,
    activation: ir.DataType = ir.DataType.FLOAT,
    scale: ir.DataType = ir.DataType.FLOAT,
    zero_points: bool = False,
    bias: bool = False,
    opset: int = 18,
) -> ir.Function:
    """Body of `onnxpress::MatMulNBits`: the weight is dequantized to float32, then multiplied.

    The body computes what accuracy_level 0 does; the kernel differs from it by the rounding of the activations, at
    level 3 to bfloat16 and at level 4 to int8.

    Args:
        bits: 2 to 8.
        K: Length of the reduction.
        N: Output channels.
        block_size: Codes in a block.
        activation: Type of A, bias and the output: FLOAT or FLOAT16.
        scale: Type of the scales: FLOAT, FLOAT16 or BFLOAT16.
        zero_points: Whether the node has packed uint8 zero points.
        bias: Whether the node has a bias.
        opset: That of the model, from MIN_OPSET on; the checker wants functions to have the same.

    Returns:
        The function, with inputs A, B, scales, zero_points and bias as the op has; its `overload` is unique for
        these arguments.
    """
    blocks = -(-K // block_size)
    body = Body()
    inputs = [ir.Value(name=name) for name in ("A", "B", "scales", "zero_points", "bias")]
    inputs = inputs[: 5 if bias else 4 if zero_points else 3]

    codes = unpack(body, inputs[1], (N, blocks), block_size, bits)
    if zero_points:
        offset = body.op("Reshape", unpack(body, inputs[3], (N,), blocks, bits), body.shape(N, blocks, 1))
    else:
        offset = body.constant(np.array(2.0 ** (bits - 1), np.float32))
    factor = body.op("Reshape", inputs[2], body.shape(N, blocks, 1))
    if scale != ir.DataType.FLOAT:
        factor = body.op("Cast", factor, to=int(ir.DataType.FLOAT))
    weight = body.op("Mul", body.op("Sub", codes, offset), factor)
    weight = body.op("Reshape", weight, body.shape(N, blocks * block_size))
    if blocks * block_size != K:
        weight = body.slice(weight, 0, K)
    weight = body.op("Transpose", weight)
    a = inputs[0]
    if activation != ir.DataType.FLOAT:
        a = body.op("Cast", a, to=int(ir.DataType.FLOAT))
    y = body.op("MatMul", a, weight)
    if bias:
        added = inputs[4]
        if activation != ir.DataType.FLOAT:
            added = body.op("Cast", added, to=int(ir.DataType.FLOAT))
        y = body.op("Add", y, added)
    if activation != ir.DataType.FLOAT:
        y = body.op("Cast", y, to=int(activation))

    parts = [
        f"b{bits}",
        f"k{K}",
        f"n{N}",
        f"block{block_size}",
        activation.name.lower(),
        f"scale_{scale.name.lower()}",
    ]
    parts += ["zero_points"] * zero_points + ["bias"] * bias
    attributes = {"K": K, "N": N, "bits": bits, "block_size": block_size, "accuracy_level": 0}
    return function("MatMulNBits", "_".join(parts), body, inputs, [y], attributes, opset)
