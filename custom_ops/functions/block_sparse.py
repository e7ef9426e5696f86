"""`onnxpress::BlockSparseMatMul` in standard ops: the weight is rebuilt in full, then multiplied.

Integer products are of two unsigned matrices, the weight's moved up by 128: of uint8 by int8 ONNX Runtime saturates
sums of two products where the CPU has no dot products of bytes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .body import Body, function

_FLOAT, _INT32, _INT64, _UINT8 = (
    int(each) for each in (ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT8)
)
_INPUTS = (
    "A", "values", "indices", "offsets", "scales", "bias", "a_scale", "a_zero_point", "y_scale", "y_zero_point",
)  # fmt: skip


def _block_rows(body: Body, indices: ir.Value, offsets: ir.Value) -> ir.Value:
    """Which block row each block is in, int64 [blocks].

    In the list of all blocks with a mark where a block row but the first begins, mark i has the place offsets[i] + i
    - 1, and as many marks lie before a block as there are block rows before its own.
    """
    wide = body.op("Cast", offsets, to=_INT64)
    starts = body.op("Slice", wide, body.shape(1), body.shape(-1))
    marks = body.op("Shape", starts)
    count = body.op("Squeeze", marks)
    zero, one = body.constant(np.array(0, np.int64)), body.constant(np.array(1, np.int64))
    places = body.op("Add", starts, body.op("Range", zero, count, one))
    size = body.op("Add", body.op("Shape", indices), marks)
    empty = body.op("ConstantOfShape", size, value=ir.tensor(np.zeros(1, np.int64)))
    ones = body.op("ConstantOfShape", marks, value=ir.tensor(np.ones(1, np.int64)))
    marked = body.op("ScatterElements", empty, places, ones, axis=0)
    before = body.op("CumSum", marked, zero)
    return body.op("Compress", before, body.op("Equal", marked, zero), axis=0)


def _dense(
    body: Body, values: ir.Value, indices: ir.Value, offsets: ir.Value, fill: np.ndarray, sizes: tuple[int, ...]
) -> ir.Value:
    """The weight [K, N]."""
    K, N, block_k, block_n = sizes
    rows, columns = -(-N // block_n), -(-K // block_k)
    last = body.shape(-1)
    row = body.op("Unsqueeze", _block_rows(body, indices, offsets), last)
    column = body.op("Unsqueeze", body.op("Cast", indices, to=_INT64), last)
    full = body.op("ConstantOfShape", body.shape(rows, columns, block_n, block_k), value=ir.tensor(fill))
    blocks = body.op("ScatterND", full, body.op("Concat", row, column, axis=1), values)
    padded = body.op("Transpose", blocks, perm=[1, 3, 0, 2])
    weight = body.op("Reshape", padded, body.shape(columns * block_k, rows * block_n))
    return body.op("Slice", weight, body.shape(0, 0), body.shape(K, N), body.shape(0, 1))


def _quantize_rows(body: Body, a: ir.Value, opset: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Codes moved up by 128, scales [..., 1], and 0 or, for rows with a NaN or an infinity, NaN [..., 1]."""
    zero, one = body.number(0), body.number(1)
    peak = body.reduce_last("ReduceMax", body.op("Abs", a), opset)
    poison = body.reduce_last("ReduceSum", body.op("Mul", a, zero), opset)
    scale = body.op("Div", peak, body.number(127))
    subnormal = body.op("Less", scale, body.number(float(np.finfo(np.float32).tiny)))
    divisor = body.op("Where", subnormal, one, scale)
    codes = body.op("Round", body.op("Div", a, divisor))
    codes = body.op("Where", body.op("IsNaN", codes), zero, codes)
    return body.op("Cast", body.op("Add", codes, body.number(128)), to=_UINT8), scale, poison


def block_sparse_matmul(
    *,
    K: int,
    N: int,
    block_k: int,
    block_n: int,
    values: ir.DataType = ir.DataType.INT8,
    a: ir.DataType = ir.DataType.FLOAT,
    activation: str = "",
    bias: bool = False,
    static: bool = False,
    quantized_output: bool = False,
    opset: int = 18,
) -> ir.Function:
    """Body of `onnxpress::BlockSparseMatMul`.

    Args:
        K: Length of the reduction.
        N: Output channels.
        block_k: Size of a block along K.
        block_n: Size of a block along N.
        values: Type of the weight: INT8 or FLOAT.
        a: Type of A: FLOAT, or UINT8 with `static`.
        activation: "", "relu", "gelu" or "gelu_tanh".
        bias: Whether the node has a bias.
        static: Whether the node has a_scale and a_zero_point.
        quantized_output: Whether the node has y_scale and y_zero_point.
        opset: That of the model, from MIN_OPSET on; the checker wants functions to have the same.

    Returns:
        The function, with inputs A, values, indices, offsets, scales, bias, a_scale, a_zero_point, y_scale and
        y_zero_point as the op has, up to the last that is used; its `overload` is unique for these arguments.
    """
    body = Body()
    integer = values == ir.DataType.INT8
    used = 10 if quantized_output else 8 if static else 6 if bias else 5 if integer else 4
    inputs = [ir.Value(name=name) for name in _INPUTS[:used]]
    x, stored, indices, offsets = inputs[:4]
    sizes = K, N, block_k, block_n

    if integer:
        moved = body.op("Add", body.op("Cast", stored, to=_INT32), body.constant(np.array(128, np.int32)))
        fill = np.full(1, 128, np.uint8)
        weight = _dense(body, body.op("Cast", moved, to=_UINT8), indices, offsets, fill, sizes)
        middle = body.constant(np.array(128, np.uint8))
        if static:
            zero_point, factor = inputs[7], body.op("Mul", inputs[6], inputs[4])
            codes = x if a == ir.DataType.UINT8 else body.op("QuantizeLinear", x, inputs[6], zero_point)
        else:
            zero_point = middle
            codes, scale, poison = _quantize_rows(body, x, opset)
            # The sum also keeps ONNX Runtime from its fusion of products by two scales, of which it takes one a row
            # for one for all.
            factor = body.op("Add", body.op("Mul", scale, inputs[4]), poison)
        sums = body.op("MatMulInteger", codes, weight, zero_point, middle)
        y = body.op("Mul", body.op("Cast", sums, to=_FLOAT), factor)
    else:
        y = body.op("MatMul", x, _dense(body, stored, indices, offsets, np.zeros(1, np.float32), sizes))
    if bias:
        y = body.op("Add", y, inputs[5])
    y = body.activate(y, activation)
    if quantized_output:
        y = body.op("QuantizeLinear", y, inputs[8], inputs[9])

    parts = [f"k{K}", f"n{N}", f"block{block_k}x{block_n}", values.name.lower(), f"a_{a.name.lower()}"]
    parts += [activation] * bool(activation) + ["bias"] * bias + ["static"] * static
    parts += ["quantized_output"] * quantized_output
    attributes: dict[str, int | str] = {
        "K": K,
        "N": N,
        "block_k": block_k,
        "block_n": block_n,
        "activation": activation,
    }
    return function("BlockSparseMatMul", "_".join(parts), body, inputs, [y], attributes, opset)
