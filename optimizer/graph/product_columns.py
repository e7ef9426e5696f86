"""Products with constant weights as columns, which can be put side by side and in another order, rounded or not.

Each column of a product has its own part of every operand: of a MatMul [K, N] along axis 1, of a MatMulNBits, which has
its output channels first, along axis 0. So nothing is rounded anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

import onnx_ir as ir

from .constants import constant_of
from .matching import input_of, is_standard, sole_reader
from .weight_form import MICROSOFT


@dataclasses.dataclass(frozen=True)
class ColumnProduct:
    """x W, or x W + b, with a column of the operands for each of the result.

    Attributes:
        node: The product.
        x: What it multiplies.
        operands: The axis of the columns, by the place of the operand.
        bias: Place of the bias among the inputs of the product, where it takes one.
        add: The node that adds a constant of one axis behind it; None where there is none.
        columns: How many there are.
        kind: What products have in common that can stand side by side.
    """

    node: ir.Node
    x: ir.Value
    operands: dict[int, int]
    bias: int | None
    add: ir.Node | None
    columns: int
    kind: Hashable

    @property
    def result(self) -> ir.Value:
        """The whole."""
        return (self.add or self.node).outputs[0]

    def constants(self) -> dict[int, ir.TensorProtocol]:
        """The operands that it has, by their places."""
        found = {
            place: constant_of(self.node.inputs[place]) for place in self.operands if place < len(self.node.inputs)
        }
        return {place: tensor for place, tensor in found.items() if tensor is not None}

    def added(self) -> ir.TensorProtocol | None:
        """The constant that is added behind it."""
        return None if self.add is None else _vector_beside(self.add, self.node.outputs[0])


def read_product(node: ir.Node) -> ColumnProduct | None:
    """A product whose operands are constants that nobody else reads; None for any other node."""
    bias: int | None = None
    attributes: tuple[tuple[str, object], ...] = ()
    if is_standard(node, "MatMul"):
        operands = {1: 1}
    elif (node.op_type, node.domain) == ("MatMulNBits", MICROSOFT) and input_of(node, 4) is None:
        operands, bias = {1: 0, 2: 0, 3: 0, 5: 0}, 5
        attributes = tuple(sorted((name, each.value) for name, each in node.attributes.items() if name != "N"))
    else:
        return None
    x, read = node.inputs[0], [(place, value) for place, value in enumerate(node.inputs[1:], 1) if value is not None]
    if x is None or constant_of(x) is not None or any(not _is_own(value) for _, value in read):
        return None
    tensors = {place: constant_of(value) for place, value in read}
    if any(tensor is None or len(tensor.shape) <= operands[place] for place, tensor in tensors.items()):
        return None
    weight = tensors.get(1)
    if weight is None or (bias is None and len(weight.shape) != 2):
        return None
    types = tuple((place, tensor.dtype) for place, tensor in tensors.items() if tensor is not None and place != bias)
    columns = int(weight.shape.numpy()[operands[1]])
    if any(tensor.shape.numpy()[operands[place]] != columns for place, tensor in tensors.items() if tensor is not None):
        return None
    reader = sole_reader(node.outputs[0])
    vector = _vector_beside(reader, node.outputs[0]) if is_standard(reader, "Add") else None
    add = reader if vector is not None and vector.shape.numpy() == (columns,) else None
    kind = node.op_identifier(), attributes, types, x, weight.shape.numpy()[:1] if bias is None else ()
    return ColumnProduct(node, x, operands, bias, add, columns, kind)


def _is_own(value: ir.Value) -> bool:
    """Whether a constant is stored for one node alone."""
    return value.is_initializer() and not value.is_graph_input() and len(value.uses()) == 1


def _vector_beside(add: ir.Node | None, value: ir.Value) -> ir.TensorProtocol | None:
    """The constant of float32 and one axis that is added to a value."""
    if add is None or len(add.inputs) != 2:
        return None
    tensor = constant_of(add.inputs[1] if add.inputs[0] is value else add.inputs[0])
    return tensor if tensor is not None and len(tensor.shape) == 1 and tensor.dtype == ir.DataType.FLOAT else None
