"""What ONNX Runtime computes on codes of 8 bits, and what of a node stands in its way.

Its CPU kernels were read off the rules that turn `DequantizeLinear, op, QuantizeLinear` into one node: QLinearConv,
QLinearMatMul, MatMulIntegerToFloat, QGemm, QLinearAdd, QLinearMul, QLinearConcat, QLinearAveragePool,
QLinearGlobalAveragePool, QLinearLeakyRelu, QLinearSigmoid, and operators that only move codes.
"""

from __future__ import annotations

import dataclasses
import enum
import math

import numpy as np
import onnx_ir as ir

from ..graph.constants import constant_of, is_constant, release, scalar, why_unread
from ..graph.matching import least_rank
from ..quantization.rtn import is_finite


class Role(enum.Enum):
    """How an operator meets its codes."""

    CONV = "Conv"
    GEMM = "Gemm"
    MATMUL = "MatMul with a constant"
    MATMUL_OF_TWO = "MatMul of two activations"
    MOVE = "moves codes: output and input share their scale"
    MAP = "one input, one output, each with its scale"
    BINARY = "Add or Mul"
    CONCAT = "Concat"
    SPLIT = "Split"
    SCALE = "product by a positive constant: the same codes with another scale"
    TABLE = "Gather of a constant"
    CLAMP = "Relu or Clip: the rounding of what it bounds saturates"


PRODUCTS = (Role.CONV, Role.GEMM, Role.MATMUL, Role.MATMUL_OF_TWO)

_MOVES = {
    "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "Tile", "MaxPool", "Resize",
    "DepthToSpace",
}  # fmt: skip
_MAPS = {"AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"}
_KNOWN = {
    "Conv", "Gemm", "MatMul", "Add", "Mul", "Div", "Concat", "Split", "Relu", "Clip", *_MOVES, *_MAPS,
}  # fmt: skip
_HAVE_WEIGHTS = {"ConvTranspose", "LSTM", "GRU", "RNN", "Einsum", "DeformConv"}
OPERATORS = frozenset({*_KNOWN, *_HAVE_WEIGHTS})
"""All whose int8 form is asked for."""


@dataclasses.dataclass(frozen=True)
class Operator:
    """A node with the part of it that is about codes.

    Attributes:
        node: The node.
        role: How it meets its codes.
        inputs: Indices of the inputs that are activations.
        constant: Index of the input that is a constant to round: a weight, or an operand of Add and Mul.
        factor: Of `SCALE`.
        bounds: Of `CLAMP`.
    """

    node: ir.Node
    role: Role
    inputs: tuple[int, ...] = (0,)
    constant: int | None = None
    factor: float = 1.0
    bounds: tuple[float, float] = (-math.inf, math.inf)

    @property
    def activations(self) -> list[ir.Value]:
        """The inputs that are activations."""
        return [value for index in self.inputs if (value := self.node.inputs[index]) is not None]

    @property
    def is_product(self) -> bool:
        """Whether it is what int8 is wanted for; the others only follow."""
        return self.role in PRODUCTS

    @property
    def parameters(self) -> int:
        """Elements of its weight."""
        if not self.is_product or self.constant is None:
            return 0
        return array_size(self.node.inputs[self.constant])


def array_size(value: ir.Value | None) -> int:
    """Elements of a constant, 0 for anything else."""
    tensor = constant_of(value)
    return tensor.size if tensor is not None else 0


def understand(node: ir.Node) -> Operator | str | None:
    """The operator that a node is; why ONNX Runtime has no int8 form of it; or None where int8 is no matter."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in _HAVE_WEIGHTS:
        return f"ONNX Runtime has no int8 {node.op_type}"
    if node.op_type not in _KNOWN:
        return None
    if not node.inputs or node.inputs[0] is None:
        return "lacks an input"
    if node.op_type in _MOVES:
        return _move(node)
    if node.op_type in _MAPS:
        return _map(node)
    readers = {
        "Conv": _conv, "Gemm": _gemm, "MatMul": _matmul, "Add": _binary, "Mul": _binary, "Div": _binary,
        "Concat": _concat, "Split": _split, "Relu": _relu, "Clip": _clip,
    }  # fmt: skip
    return readers[node.op_type](node)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def needs_float(node: ir.Node) -> bool:
    """Whether QLinearAveragePool would be another function than a pool."""
    attributes = node.attributes
    padded = attributes.get_int("count_include_pad", 0) == 1 and attributes.get_int("ceil_mode", 0) == 1
    return padded or any(step != 1 for step in attributes.get_ints("dilations", []))


def _rank(value: ir.Value | None) -> int:
    tensor = constant_of(value)
    return 0 if tensor is None else len(tensor.shape)


def refuse_weight(value: ir.Value | None) -> str | None:
    """Why a value is no weight that can be rounded."""
    tensor = constant_of(value)
    if value is None or tensor is None:
        reason = why_unread(value) if value is not None else None
        return f"the weight is no stored constant: {reason}" if reason else "no constant weight"
    if tensor.dtype != ir.DataType.FLOAT:
        return f"weight of type {tensor.dtype.name}; these schemes take float32"
    if tensor.size == 0:
        return "empty weight"
    finite = is_finite(tensor.numpy())
    release(tensor)
    return None if finite else "the weight holds NaN or infinity"


def _refuse_bias(node: ir.Node, index: int) -> str | None:
    value = _input(node, index)
    if value is None:
        return None
    tensor = constant_of(value)
    if tensor is None:
        return "the bias is no constant"
    if tensor.dtype != ir.DataType.FLOAT or not np.isfinite(tensor.numpy()).all():
        return "the bias is not of finite float32 numbers"
    return None


def _conv(node: ir.Node) -> Operator | str:
    reason = refuse_weight(_input(node, 1)) or _refuse_bias(node, 2)
    return reason or Operator(node, Role.CONV, constant=1)


def _gemm(node: ir.Node) -> Operator | str:
    reason = refuse_weight(_input(node, 1)) or _refuse_bias(node, 2)
    if reason:
        return reason
    if node.attributes.get_int("transA", 0):
        return "Gemm with transA"
    c = constant_of(_input(node, 2))
    if c is not None:
        weight = constant_of(node.inputs[1])
        assert weight is not None
        columns = weight.shape.numpy()[0 if node.attributes.get_int("transB", 0) else 1]
        if c.size not in (1, columns) or (c.size > 1 and c.shape.numpy()[-1] != columns):
            return "the bias is not one number a column"
    return Operator(node, Role.GEMM, constant=1)


def _matmul(node: ir.Node) -> Operator | str:
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return "lacks an input"
    if is_constant(node.inputs[0]):
        return "the constant is on the left"
    if not is_constant(node.inputs[1]):
        shapes = [value.shape for value in node.inputs if value is not None]
        if any(shape is not None and len(shape) < 2 for shape in shapes):
            return "product with a vector"
        return Operator(node, Role.MATMUL_OF_TWO, inputs=(0, 1))
    reason = refuse_weight(node.inputs[1])
    if reason:
        return reason
    if len(constant_of(node.inputs[1]).shape) != 2:  # type: ignore[union-attr]
        return "the weight is no matrix"
    return Operator(node, Role.MATMUL, constant=1)


def _move(node: ir.Node) -> Operator | str | None:
    if is_constant(node.inputs[0]):
        return "a constant table, which stays as it is" if node.op_type == "Gather" else "what it moves is constant"
    if node.op_type == "MaxPool" and len(node.outputs) > 1:
        return "MaxPool with indices"
    if node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") not in ("nearest", "linear"):
        return "Resize in mode cubic"
    if "axes" in node.attributes:
        return "Resize of some axes"
    return Operator(node, Role.MOVE)


def _map(node: ir.Node) -> Operator | str:
    if node.op_type == "AveragePool" and needs_float(node):
        return "ONNX Runtime's int8 AveragePool has no dilations, and other counts where ceil_mode adds windows"
    return Operator(node, Role.MAP)


def _binary(node: ir.Node) -> Operator | str | None:
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return "lacks an input"
    constants = [index for index, value in enumerate(node.inputs) if is_constant(value)]
    if len(constants) == 2:
        return None
    if not constants:
        return Operator(node, Role.BINARY, inputs=(0, 1)) if node.op_type != "Div" else "Div by an activation"
    index = constants[0]
    number = scalar(node.inputs[index])
    if number is not None and _rank(node.inputs[index]) > least_rank(node.inputs[1 - index]):
        number = None  # the result has more axes than the codes
    if node.op_type != "Add" and number is not None and number > 0 and math.isfinite(number):
        if node.op_type == "Mul":
            return Operator(node, Role.SCALE, inputs=(1 - index,), factor=number)
        if index == 1:
            return Operator(node, Role.SCALE, factor=1 / number)
    if node.op_type == "Div":
        return "Div by or of a constant"
    reason = refuse_weight(node.inputs[index])
    return reason or Operator(node, Role.BINARY, inputs=(1 - index,), constant=index)


def _concat(node: ir.Node) -> Operator | str | None:
    constants = [value for value in node.inputs if value is None or is_constant(value)]
    if len(constants) == len(node.inputs):
        return None
    return "Concat with a constant" if constants else Operator(node, Role.CONCAT, inputs=tuple(range(len(node.inputs))))


def _split(node: ir.Node) -> Operator:
    return Operator(node, Role.SPLIT)


def _relu(node: ir.Node) -> Operator:
    return Operator(node, Role.CLAMP, bounds=(0.0, math.inf))


def _clip(node: ir.Node) -> Operator | str:
    bounds = [-math.inf, math.inf]
    for which, name in enumerate(("min", "max")):
        value = _input(node, which + 1)
        if name in node.attributes:  # opset 6
            bounds[which] = node.attributes.get_float(name, bounds[which])
        elif value is not None:
            number = scalar(value)
            if number is None:
                return "Clip with bounds that are no constants"
            bounds[which] = number
    if not bounds[0] <= 0 <= bounds[1]:
        return "Clip to a range without zero"
    if bounds[0] == bounds[1]:
        return "Clip to one number"
    return Operator(node, Role.CLAMP, bounds=(bounds[0], bounds[1]))
