"""Channels of a tensor divided by numbers without another node: the constants that make the tensor take it.

    x = W a + b            ->  x / s = (W / s) a + b / s             MatMul, Gemm, Conv, each along its output channels
    x = g norm(a) + b      ->  x / s = (g / s) norm(a) + b / s       LayerNormalization, Mul and Add by a vector
    x = f(y), s > 0        ->  x / s = f(y / s)                      Relu, LeakyRelu, Clip between 0 and infinity, pools

and the products that read it take it back: W (x) = (W s) (x / s).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..graph.constants import constant_of
from ..graph.matching import fixed, input_of, is_fixed, is_standard
from ..graph.rewriting import add_initializer, required
from ..graph.scaled_tensor import scaled_tensor
from ..planning.int8_operators import Operator, understand

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_NORMS: dict[str, tuple[str, int, int | None]] = {
    "LayerNormalization": ("", 1, 2),
    "RMSNormalization": ("", 1, None),
    "SimplifiedLayerNormalization": ("", 1, None),
    "SkipLayerNormalization": ("com.microsoft", 2, 3),
    "SkipSimplifiedLayerNormalization": ("com.microsoft", 2, None),
}
"""Domain, and inputs that hold the scale and what is added behind it."""
_HOMOGENEOUS = {"Relu", "LeakyRelu"}
_POOLS = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
_HANDS_ON = {*_HOMOGENEOUS, *_POOLS, "Add", "Clip", "Mul"}


@dataclasses.dataclass(frozen=True)
class Operand:
    """A constant that a node reads.

    Attributes:
        node: The node.
        index: Of its input.
        shape: That a vector of channels gets to be spread over it.
    """

    node: ir.Node
    index: int
    shape: tuple[int, ...]

    def multiply(self, scale: Doubles) -> None:
        """Let the node read the constant times a vector of channels; other readers keep what they have."""
        value = required(self.node.inputs[self.index])
        tensor = required(constant_of(value))
        product = scaled_tensor(tensor, scale.reshape(self.shape), value.name)
        alone = value.is_initializer() and len(value.uses()) == 1 and not value.is_graph_output()
        if alone and product.shape == tensor.shape:
            value.const_value = product
            return
        graph = self.node.graph
        assert isinstance(graph, ir.Graph)
        self.node.replace_input_with(self.index, add_initializer(graph, f"{value.name}_scaled", product))
        if value.is_initializer() and not value.uses() and not value.is_graph_output():
            graph.initializers.pop(value.name or "", None)


@dataclasses.dataclass(frozen=True)
class Reader:
    """A product with a constant weight that reads a tensor.

    Attributes:
        node: MatMul, Gemm or Conv.
        shape: Of its weight.
        axis: Of the weight's output channels.
        groups: Of a Conv, else 1.
    """

    node: ir.Node
    shape: tuple[int, ...]
    axis: int
    groups: int

    @classmethod
    def read(cls, node: ir.Node) -> Reader | None:
        """The product that a node is, where its weight is a constant that no caller can override."""
        operator = understand(node)
        if not isinstance(operator, Operator) or operator.constant != 1 or not operator.is_product:
            return None
        if not is_fixed(node.inputs[1]):
            return None
        shape = tuple(required(constant_of(node.inputs[1])).shape.numpy())
        if node.op_type == "Conv":
            return cls(node, shape, 0, node.attributes.get_int("group", 1))
        return cls(node, shape, 0 if _is_transposed(node) else 1, 1)

    @property
    def weight(self) -> Floats:
        """A copy of the weight, float32, which is read anew each time."""
        return required(fixed(self.node.inputs[1]))

    @property
    def channels(self) -> int:
        """Of the tensor it reads."""
        return self.shape[1 - self.axis] * self.groups

    @property
    def trailing(self) -> int:
        """Axes of that tensor behind its channels."""
        return len(self.shape) - 2

    def input_ranges(self, relative: bool = False) -> Doubles:
        """[channels]: largest magnitude of the weights that each channel meets.

        Args:
            relative: Each as a share of the largest of its output channel, which is what its scale comes from.
        """
        rows = np.abs(np.moveaxis(self.weight, self.axis, 0))
        if relative:
            most = rows.max(axis=tuple(range(1, rows.ndim)), keepdims=True)
            rows = np.divide(rows, most, out=np.zeros_like(rows), where=most > 0)
        rows = rows.reshape(self.groups, -1, *rows.shape[1:])
        ranges: Doubles = rows.max(axis=(1, *range(3, rows.ndim))).reshape(-1).astype(np.float64)
        return ranges

    def is_depthwise(self) -> bool:
        """Whether each output channel reads one input channel, whose scale the weight's own then absorbs."""
        return self.groups > 1 and self.shape[1] == 1

    def multiply(self, scale: Doubles) -> None:
        """Take a scale a channel of the tensor into the weight."""
        shape: tuple[int, ...]
        if self.axis == 1:
            spread, shape = scale, (-1, 1)
        elif self.node.op_type == "Gemm":
            spread, shape = scale, (1, -1)
        else:
            N, inner = self.shape[:2]
            spread = np.repeat(scale.reshape(self.groups, inner), N // self.groups, axis=0)
            shape = (N, inner, *[1] * self.trailing)
        Operand(self.node, 1, shape).multiply(spread)


def products_by_input(model: ir.Model) -> dict[ir.Value, list[Reader]]:
    """The MatMul and Gemm nodes with constant weights in the main graph, by the tensor that they read, in order."""
    groups: dict[ir.Value, list[Reader]] = {}
    for node in model.graph:
        if is_standard(node, "MatMul", "Gemm") and node.inputs[0] is not None:
            reader = Reader.read(node)
            if reader is not None:
                groups.setdefault(node.inputs[0], []).append(reader)
    return groups


def find_makers(value: ir.Value, readers: Collection[ir.Node], channels: int, trailing: int = 0) -> list[Operand] | str:
    """The constants that divide a tensor when they are divided.

    Args:
        value: The tensor.
        readers: The nodes that may see it divided.
        channels: Its size along the axis of the scale.
        trailing: Axes behind that one.

    Returns:
        Constants, or why there are none: another node reads the tensor, or what makes it cannot take a scale.
    """
    if value.is_graph_output():
        return "the tensor is an output of the graph"
    if any(node not in readers and not is_standard(node, "Shape", "Size") for node, _ in value.uses()):
        return "others read the tensor too"
    node = value.producer()
    if node is None:
        return "the tensor is no result of a node"
    if value is not node.outputs[0]:
        return f"not the first output of {node.op_type}"
    if node.op_type in _NORMS and not trailing:
        return _norm(node, channels)
    if node.domain not in ("", "ai.onnx"):
        return f"{node.op_type} cannot take a scale"
    if node.op_type in _HOMOGENEOUS or (node.op_type in _POOLS and trailing and len(node.outputs) == 1):
        return find_makers(required(node.inputs[0]), {node}, channels, trailing)
    if node.op_type == "Clip":
        operator = understand(node)
        if not isinstance(operator, Operator) or any(bound != 0 and math.isfinite(bound) for bound in operator.bounds):
            return "a Clip to other bounds than 0 cannot take a scale"
        return find_makers(required(node.inputs[0]), {node}, channels, trailing)
    if node.op_type in ("Add", "Mul"):
        return _elementwise(node, channels, trailing)
    return _linear(node, channels, trailing)


def moved_through(value: ir.Value, makers: Sequence[Operand]) -> list[ir.Value]:
    """The tensors that are divided with a tensor when its makers are, itself first, on the way back to them.

    Args:
        value: The tensor.
        makers: Of it, from `find_makers`.
    """
    node = value.producer()
    if node is None or node is makers[0].node:
        return [value]
    way = next((each for each in node.inputs if each is not None and _is_made_by(each, makers[0].node)), None)
    return [value] if way is None else [value, *moved_through(way, makers)]


def _is_made_by(value: ir.Value, maker: ir.Node) -> bool:
    node = value.producer()
    if node is None or node is maker:
        return node is maker
    hands_on = node.op_type in _HANDS_ON
    return hands_on and any(_is_made_by(each, maker) for each in node.inputs if each is not None)


def _is_transposed(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1


def _elementwise(node: ir.Node, channels: int, trailing: int) -> list[Operand] | str:
    constants = [index for index in (0, 1) if fixed(node.inputs[index]) is not None]
    if len(constants) != 1:
        return _product_of_two(node, channels, trailing)
    index, other = constants[0], required(node.inputs[1 - constants[0]])
    array = required(fixed(node.inputs[index]))
    operand = Operand(node, index, (channels, *[1] * trailing))
    if node.op_type == "Mul" and array.size > 1:
        return [operand]
    # A number stays one: as a vector it would no longer be a mere change of scale.
    before = find_makers(other, {node}, channels, trailing)
    return before if isinstance(before, str) or node.op_type == "Mul" else [*before, operand]


def _product_of_two(node: ir.Node, channels: int, trailing: int) -> list[Operand] | str:
    """One factor of a Mul takes the scale, such as the ungated half of a gated layer, if it has the channels."""
    for value in node.inputs if node.op_type == "Mul" else ():
        makers = "none" if value is None else find_makers(value, {node}, channels, trailing)
        if not isinstance(makers, str):
            return makers
    return f"{node.op_type} of two tensors cannot take a scale"


def _linear(node: ir.Node, channels: int, trailing: int) -> list[Operand] | str:
    """MatMul, Gemm and Conv: the constant that channels come from, and the one that is added."""
    weight = fixed(node.inputs[1]) if len(node.inputs) > 1 else None
    shapes: dict[str, tuple[int, ...]] = {
        "MatMul": (1, channels),
        "Gemm": (channels, 1) if _is_transposed(node) else (1, channels),
        "Conv": (channels, 1, *[1] * trailing),
    }
    shape = shapes.get(node.op_type)
    if weight is None or shape is None or (trailing > 0) != (node.op_type == "Conv"):
        return f"{node.op_type} cannot take a scale"
    if weight.ndim != len(shape) or any(size not in (1, have) for size, have in zip(shape, weight.shape, strict=True)):
        return f"{node.op_type} has other channels"
    operands = [Operand(node, 1, shape)]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        if fixed(node.inputs[2]) is None:
            return f"the bias of {node.op_type} is no constant"
        operands.append(Operand(node, 2, (channels,)))
    return operands


def _norm(node: ir.Node, channels: int) -> list[Operand] | str:
    """The scale of a norm, and what it adds behind that."""
    domain, *indices = _NORMS[node.op_type]
    if (node.domain or "ai.onnx") != (domain or "ai.onnx"):
        return f"{node.op_type} of another domain cannot take a scale"
    found = []
    for index, what in zip(indices, ("scale", "bias"), strict=True):
        value = None if index is None else input_of(node, index)
        if value is None and what == "bias":
            continue
        array = fixed(value)
        if array is None:
            return f"the {what} of {node.op_type} is no constant of float32"
        if array.shape not in ((channels,), (1,)):
            return f"{node.op_type} has other channels"
        found.append(Operand(node, required(index), (channels,)))
    return found
