"""Root mean square normalization that exporters write out becomes the operator that ONNX Runtime has for it.

    y = x / sqrt(mean(x^2) + epsilon) scale        (Zhang and Sennrich, 2019, arXiv:1910.07467)

over the last axis. Squares are Pow or Mul, the quotient Div or the product with 1 / sqrt. The operator is ONNX
Runtime's SimplifiedLayerNormalization, which has it in the standard domain.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from ..graph.constants import constant_of, mark_constants
from ..graph.element_type import is_float32
from ..graph.matching import RMS_NORM, is_fixed, is_standard, number, sole_reader
from ..graph.projection import known_size
from ..graph.rewriting import insert_before, replace, required, take_over_name
from ..graph.written_norms import beside_number, mean_of, root_of_squares
from .base import GraphPass
from .remove_unused import remove_unused


@dataclasses.dataclass(frozen=True)
class _Norm:
    x: ir.Value
    epsilon: float
    scale: ir.Value
    last: ir.Node


class RecogniseRmsNorms(GraphPass):
    """Write each normalization by the root mean square over the last axis of float32 as one node.

    Cases: see the module; a scale that is a constant of one axis. Left alone: others, and where what is between is
    read elsewhere. Only the main graph is changed.

    Attributes:
        made: The new nodes.
    """

    def __init__(self) -> None:
        self.made: list[ir.Node] = []

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite; whether anything changed."""
        mark_constants(model)
        for node in list(model.graph):
            found = _find(node) if is_standard(node, "Sqrt") else None
            if found is None:
                continue
            y = insert_before(
                found.last, RMS_NORM, [found.x, found.scale], found.last.outputs[0],
                suffix="_norm", attributes={"axis": -1, "epsilon": found.epsilon, "stash_type": 1},
            )  # fmt: skip
            made = required(y.producer())
            take_over_name(made, found.last)
            y.shape = y.shape if found.x.shape is None else found.x.shape
            replace(found.last, y)
            self.made.append(made)
        if self.made:
            remove_unused(model)
        return bool(self.made)


def _find(root: ir.Node) -> _Norm | None:
    """The normalization around the square root of a mean."""
    summed = required(root.inputs[0]).producer()
    if not is_standard(summed, "Add") or not is_float32(root.outputs[0]):
        return None
    mean, epsilon = beside_number(summed)
    squares, axis = mean_of(mean)
    x = root_of_squares(squares)
    if x is None or epsilon is None or x.shape is None or axis not in (-1, len(x.shape) - 1):
        return None
    quotient = _quotient(root, x)
    scaled = sole_reader(quotient) if quotient is not None else None
    if not is_standard(scaled, "Mul"):
        return None
    scale = scaled.inputs[1] if scaled.inputs[0] is quotient else scaled.inputs[0]
    tensor = constant_of(scale) if is_fixed(scale) else None
    if scale is None or tensor is None or tensor.shape.numpy() != (known_size(x, len(x.shape) - 1),):
        return None
    return _Norm(x, epsilon, scale, scaled)


def _quotient(root: ir.Node, x: ir.Value) -> ir.Value | None:
    """What x is over a root."""
    reader = sole_reader(root.outputs[0])
    if is_standard(reader, "Div") and reader.inputs[0] is x:
        return reader.outputs[0]
    one = is_standard(reader, "Div") and number(reader.inputs[0]) == 1
    if reader is None or not (one or is_standard(reader, "Reciprocal")):
        return None
    product = sole_reader(reader.outputs[0])
    return product.outputs[0] if is_standard(product, "Mul") and x in product.inputs else None
