"""Types of values that nothing states, such as those behind operators that ONNX does not know."""

from __future__ import annotations

import onnx_ir as ir

from .constants import constant_of
from .matching import is_standard

_ONE_TYPE = (
    "Add", "Concat", "Conv", "ConvTranspose", "Div", "Gemm", "InstanceNormalization", "LayerNormalization", "MatMul",
    "Max", "Mean", "Min", "Mul", "PRelu", "Sub", "Sum",
)  # fmt: skip
"""All that these read and make is of one type."""
_OF_FIRST = (
    "Abs", "AveragePool", "BatchNormalization", "Clip", "DepthToSpace", "Dropout", "Elu", "Erf", "Exp", "Expand",
    "Flatten", "Gather", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish", "Identity", "LRN",
    "LeakyRelu", "Log", "MaxPool", "Neg", "Pad", "Pow", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape",
    "Resize", "Sigmoid", "Slice", "Softmax", "Softplus", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Tanh", "Tile",
    "Transpose", "Unsqueeze", "Upsample",
)  # fmt: skip
"""What these make is of the type of the first that they read."""
_DEPTH = 16


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


def is_float32(value: ir.Value | None) -> bool:
    """Whether a value is known to be of float32."""
    return element_type(value) == ir.DataType.FLOAT
