"""Types of values that nothing states, such as those behind operators that ONNX does not know."""

from __future__ import annotations

import onnx_ir as ir

from .constants import constant_of
from .matching import is_standard

_ONE_TYPE = ("Add", "Conv", "ConvTranspose", "Div", "Gemm", "LayerNormalization", "MatMul", "Mul", "Sub")
"""All that these read and make is of one type."""
_OF_FIRST = (
    "BatchNormalization", "Clip", "Expand", "Gather", "Identity", "Relu", "Reshape", "Slice", "Softmax", "Split",
    "Squeeze", "Tanh", "Transpose", "Unsqueeze",
)  # fmt: skip
"""What these make is of the type of the first that they read."""
_DEPTH = 8


def element_type(value: ir.Value | None, depth: int = _DEPTH) -> ir.DataType | None:
    """The type of a value's numbers: as stated, or as what made it tells; None where that is not known."""
    if value is None or value.dtype is not None:
        return None if value is None else value.dtype
    if (tensor := constant_of(value)) is not None:
        return tensor.dtype
    node = value.producer()
    if depth == 0 or not is_standard(node, *_ONE_TYPE, *_OF_FIRST):
        return None
    read = node.inputs if node.op_type in _ONE_TYPE else node.inputs[:1]
    return next((kind for each in read if (kind := element_type(each, depth - 1)) is not None), None)
