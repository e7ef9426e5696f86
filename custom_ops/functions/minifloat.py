"""`onnxpress::MatMulMiniFloat` in standard ops: codes look their values up in a table."""

from __future__ import annotations

import onnx_ir as ir

from ..reference import E8M0, MINIFLOATS, block_codes, minifloat_bits
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
