"""What rewrites of float graphs ask of nodes and values."""

from __future__ import annotations

from typing import TypeGuard

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .constants import array_of, constant_of
from .weight_form import MICROSOFT

Floats = npt.NDArray[np.float32]

RMS_NORM = "SimplifiedLayerNormalization"
"""ONNX Runtime's normalization by the root mean square, which it has in the standard domain."""
_SAME_SHAPE = (
    "BatchNormalization", "Clip", "Erf", "Exp", "HardSigmoid", "HardSwish", "LeakyRelu", "Neg", "Relu", "Sigmoid",
    "Softmax", "Sqrt", "Tanh",
)  # fmt: skip


def is_standard(node: ir.Node | None, *op_types: str) -> TypeGuard[ir.Node]:
    """Whether a node is one of these operators of the standard domain."""
    return node is not None and node.domain in ("", "ai.onnx") and node.op_type in op_types


def opset_of(model: ir.Model) -> int:
    """Version of the standard operators, 0 where none is imported."""
    return model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """An input, None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def is_fixed(value: ir.Value | None) -> bool:
    """Whether a value is a constant of float32 that no caller can override; nothing is read."""
    tensor = constant_of(value)
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT


def fixed(value: ir.Value | None) -> Floats | None:
    """The numbers of a constant of float32 that no caller can override."""
    return array_of(value) if is_fixed(value) else None


def number(value: ir.Value | None, beside: ir.Value | None = None) -> float | None:
    """The number that a constant of one element holds, where it does not raise the rank of what is `beside` it."""
    tensor = constant_of(value) if value is not None and is_fixed(value) else None
    if tensor is None or tensor.size != 1 or (beside is not None and len(tensor.shape) > least_rank(beside)):
        return None
    return float(tensor.numpy().reshape(-1)[0])


def behind(value: ir.Value | None, op_type: str) -> ir.Value | None:
    """The first input of the standard operator that makes a value, where it is this one."""
    maker = value.producer() if value is not None else None
    return input_of(maker, 0) if is_standard(maker, op_type) else None


def values_read(node: ir.Node) -> list[ir.Value]:
    """What a node reads, its inner graphs included."""
    inner = [attribute.value for attribute in node.attributes.values() if isinstance(attribute.value, ir.Graph)]
    nested = [value for graph in inner for each in graph.all_nodes() for value in each.inputs]
    nested += [value for graph in inner for value in graph.outputs]
    return [value for value in (*node.inputs, *nested) if value is not None]


def sole_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value, where it is of the same graph and nobody else does."""
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    reader, producer = uses[0].node, value.producer()
    return reader if producer is None or reader.graph is producer.graph else None


def like(value: ir.Value) -> ir.Value:
    """The first value, back along nodes that keep the shape, whose shape is known or that others make."""
    while value.shape is None and is_standard(node := value.producer(), *_SAME_SHAPE) and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def least_rank(value: ir.Value | None) -> int:
    """Axes that a value has at least: from its shape, or else from what made it."""
    return _rank(value, 8)[0]


def exact_rank(value: ir.Value | None) -> int | None:
    """Axes of a value, None where neither its shape nor what made it tells."""
    rank, is_exact = _rank(value, 8)
    return rank if is_exact else None


def _rank(value: ir.Value | None, depth: int) -> tuple[int, bool]:
    """The least rank, and whether it is the rank."""
    if value is None:
        return 0, False
    if value.shape is not None:
        return len(value.shape), True
    tensor, node = constant_of(value), value.producer()
    if tensor is not None:
        return len(tensor.shape), True
    if node is None or depth == 0 or not node.inputs:
        return 0, False
    if is_standard(node, "Conv", "ConvTranspose"):
        return _rank(node.inputs[1], depth - 1)
    if is_standard(node, "Gemm"):
        return 2, True
    if is_standard(node, *_SAME_SHAPE):
        return _rank(node.inputs[0], depth - 1)
    if is_standard(node, "Add", "Sub", "Mul", "Div"):
        ranks = [_rank(each, depth - 1) for each in node.inputs]
        return max(rank for rank, _ in ranks), all(is_exact for _, is_exact in ranks)
    if is_standard(node, "MatMul"):
        (left, left_exact), (right, right_exact) = (_rank(each, depth - 1) for each in node.inputs)
        if min(left, right) >= 2:
            return max(left, right), left_exact and right_exact
        return max(left - 1, right - 1, 0), False
    return 0, False


def is_foreign(node: ir.Node) -> bool:
    """Whether only some library knows what a node does, which may be more than make its outputs."""
    return node.domain not in ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "onnxpress")


def activation_behind(last: ir.Node) -> tuple[ir.Node, str]:
    """The activation that alone reads a node and its name in our operators; the node itself and "" for others."""
    reader = sole_reader(last.outputs[0])
    if is_standard(reader, "Relu"):
        return reader, "relu"
    if reader is not None and reader.op_type == "Gelu" and reader.domain in ("", "ai.onnx", MICROSOFT):
        tanh = reader.attributes.get_string("approximate", "none") == "tanh"
        return reader, "gelu_tanh" if tanh else "gelu"
    if (
        reader is not None
        and (reader.op_type, reader.domain) == ("FastGelu", MICROSOFT)
        and input_of(reader, 1) is None
    ):
        return reader, "gelu_tanh"
    return last, ""
