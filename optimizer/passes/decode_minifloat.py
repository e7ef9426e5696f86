"""A weight of small floats that any operator can read: codes and scales behind a node that decodes them.

`onnxpress::DequantizeMiniFloat` is a function of standard ops on constants, so ONNX Runtime runs it once, when it loads
the model, and then has the weight as float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnxpress.custom_ops import functions

from ..graph.rewriting import insert_before, insert_cast, required
from .declare_functions import add_function


def decode_minifloat(
    model: ir.Model,
    reader: ir.Node,
    codes: ir.Value,
    scales: ir.Value,
    *,
    format: str,
    shape: Sequence[int],
    block_size: int = 0,
    transposed: bool = False,
    dtype: ir.DataType = ir.DataType.FLOAT,
) -> ir.Value:
    """Put the nodes that decode a weight before the node that reads it; `declare_functions` then ends the rewrite.

    Args:
        model: The model, of opset `functions.MIN_OPSET` at least; it gets the function.
        reader: The node, which names the new ones; it is not changed.
        codes: uint8 [rows, blocks, bytes] as in MatMulMiniFloat, for rows = shape[0] of all other axes.
        scales: [rows, blocks]: FLOAT, FLOAT16, BFLOAT16, or UINT8 for exponents.
        format: A key of `custom_ops.reference.MINIFLOATS`.
        shape: Of the weight: output channels first as in Conv and Gemm with transB.
        block_size: Codes in a block; 0 for one block a row.
        transposed: Turn a weight [N, K] into the [K, N] that MatMul reads.
        dtype: Of the result: FLOAT or FLOAT16.

    Returns:
        The weight.
    """
    scale, opset = required(scales.dtype), model.graph.opset_imports[""]
    function = add_function(model, functions.dequantize_minifloat(format=format, scale=scale, opset=opset))
    weight = insert_before(
        reader, "DequantizeMiniFloat", [codes, scales], None, domain=functions.DOMAIN, overload=function.overload,
        suffix="_weight", attributes={"format": format, "shape": list(shape), "block_size": block_size},
    )  # fmt: skip
    weight.type, weight.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
    if transposed:
        weight = insert_before(reader, "Transpose", [weight], None, suffix="_weight_kn", attributes={"perm": [1, 0]})
        weight.type, weight.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape[::-1])
    return weight if dtype == ir.DataType.FLOAT else insert_cast(reader, weight, dtype, "_weight_cast")
