"""Layer normalization that exporters write out becomes the operator that it is.

    d = x - mean(x),    y = d / sqrt(mean(d^2) + epsilon) scale + shift       (Ba et al., 2016, arXiv:1607.06450)

over the last axis. Squares are Pow or Mul, the quotient Div or the product with a Reciprocal.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from ..graph.constants import constant_of
from ..graph.element_type import is_float32
from ..graph.matching import input_of, is_fixed, is_standard, opset_of, sole_reader
from ..graph.rewriting import insert_before, replace, required, take_over_name
from ..graph.written_norms import beside_number, mean_of, root_of_squares
from .base import GraphPass
from .remove_unused import remove_unused

OPSET = 17
"""The first with LayerNormalization."""


@dataclasses.dataclass(frozen=True)
class _Norm:
    x: ir.Value
    epsilon: float
    scale: ir.Value
    shift: ir.Value
    last: ir.Node


class RecogniseNorms(GraphPass):
    """Write each layer normalization over the last axis of float32 as one node, in models of opset 17 on.

    Cases: see the module; a scale and a shift that are constants of one axis. Left alone: others, and where what is
    between is read elsewhere. Only the main graph is changed.
    """

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite; whether anything changed."""
        if opset_of(model) < OPSET:
            return False
        changed = False
        for node in list(model.graph):
            found = _find(node) if is_standard(node, "Sqrt") else None
            if found is None:
                continue
            y = insert_before(
                found.last, "LayerNormalization", [found.x, found.scale, found.shift], found.last.outputs[0],
                suffix="_norm", attributes={"axis": -1, "epsilon": found.epsilon},
            )  # fmt: skip
            take_over_name(required(y.producer()), found.last)
            replace(found.last, y)
            changed = True
        if changed:
            remove_unused(model)
        return changed


def _find(root: ir.Node) -> _Norm | None:
    """The normalization around the square root of its variance."""
    summed = required(root.inputs[0]).producer()
    if not is_standard(summed, "Add"):
        return None
    variance, epsilon = beside_number(summed)
    squares, axis = mean_of(variance)
    difference = root_of_squares(squares)
    x, first_axis = _centred(difference)
    if x is None or difference is None or epsilon is None or not is_float32(root.outputs[0]):
        return None
    if not {axis, first_axis} <= {-1, *([len(x.shape) - 1] if x.shape is not None else [])}:
        return None
    quotient = _quotient(root, difference)
    scaled = sole_reader(quotient) if quotient is not None else None
    scale = _constant_beside(scaled, quotient, "Mul")
    shifted = sole_reader(scaled.outputs[0]) if scaled is not None and scale is not None else None
    shift = _constant_beside(shifted, scaled.outputs[0] if scaled is not None else None, "Add")
    if scale is None or shift is None or shifted is None or not _fit(x, scale, shift):
        return None
    return _Norm(x, epsilon, scale, shift, shifted)


def _fit(x: ir.Value, scale: ir.Value, shift: ir.Value) -> bool:
    """Whether scale and shift are as long as the last axis: the operator has one of each for each number."""
    sizes = {required(constant_of(value)).size for value in (scale, shift)}
    return x.shape is not None and sizes == {x.shape[-1]}


def _centred(value: ir.Value | None) -> tuple[ir.Value | None, int | None]:
    """What a value is the difference of from its mean, and the axis of that."""
    node = value.producer() if value is not None else None
    if not is_standard(node, "Sub"):
        return None, None
    x, axis = mean_of(input_of(node, 1))
    return (x, axis) if x is node.inputs[0] else (None, None)


def _quotient(root: ir.Node, difference: ir.Value) -> ir.Value | None:
    reader = sole_reader(root.outputs[0])
    if is_standard(reader, "Div") and reader.inputs[0] is difference:
        return reader.outputs[0]
    product = sole_reader(reader.outputs[0]) if is_standard(reader, "Reciprocal") else None
    if is_standard(product, "Mul") and difference in product.inputs:
        return product.outputs[0]
    return None


def _constant_beside(node: ir.Node | None, value: ir.Value | None, op_type: str) -> ir.Value | None:
    """The constant vector that a node puts together with a value."""
    if not is_standard(node, op_type) or len(node.inputs) != 2:
        return None
    other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    tensor = constant_of(other) if is_fixed(other) else None
    return other if tensor is not None and len(tensor.shape) == 1 else None
