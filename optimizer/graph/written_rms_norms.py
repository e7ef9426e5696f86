"""Root mean square normalization that exporters write out, told from the square root in it.

    y = x / sqrt(mean(x^2) + epsilon) scale        (Zhang and Sennrich, 2019, arXiv:1910.07467)

over the last axis. Squares are Pow or Mul, the quotient Div or the product with 1 / sqrt.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from .constants import constant_of
from .element_type import is_float32
from .matching import is_fixed, is_standard, number, sole_reader
from .projection import known_size
from .rewriting import required
from .written_norms import beside_number, mean_of, root_of_squares


@dataclasses.dataclass(frozen=True)
class WrittenRmsNorm:
    """A normalization of several nodes.

    Attributes:
        x: What it reads.
        epsilon: Beside the mean of squares.
        scale: A constant of one axis.
        last: The Mul by the scale.
        readers: The nodes that read x: that of the squares and that of the quotient.
    """

    x: ir.Value
    epsilon: float
    scale: ir.Value
    last: ir.Node
    readers: tuple[ir.Node, ir.Node]


def find_written_rms_norm(root: ir.Node) -> WrittenRmsNorm | None:
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
    if squares is None or quotient is None or not is_standard(scaled, "Mul"):
        return None
    scale = scaled.inputs[1] if scaled.inputs[0] is quotient else scaled.inputs[0]
    tensor = constant_of(scale) if is_fixed(scale) else None
    if scale is None or tensor is None or tensor.shape.numpy() != (known_size(x, len(x.shape) - 1),):
        return None
    readers = required(squares.producer()), required(quotient.producer())
    return WrittenRmsNorm(x, epsilon, scale, scaled, readers)


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
