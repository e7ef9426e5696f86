"""Chains of sums and products with constants, as one affine map of their input.

    y = s x + t:        Mul, Add, Sub, Div by a constant, BatchNormalization with
                        s = gamma / sqrt(var + epsilon), t = beta - s mean
    behind each other:  s2 (s1 x + t1) + t2 = (s2 s1) x + (s2 t1 + t2)

s and t are kept in double precision, with axes that broadcast like those of the constants.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .matching import exact_rank, fixed, input_of, is_fixed, is_standard, sole_reader

Doubles = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Affine:
    """y = scale x + shift, and the common shape of all constants that were met on the way."""

    scale: Doubles
    shift: Doubles
    shape: tuple[int, ...]

    def then(self, other: Affine) -> Affine:
        """The map that does first this one, then the other."""
        return Affine(
            other.scale * self.scale,
            other.scale * self.shift + other.shift,
            np.broadcast_shapes(self.shape, other.shape),
        )

    @property
    def scales(self) -> bool:
        """Whether it is more than a sum."""
        return bool((self.scale != 1).any())

    @property
    def shifts(self) -> bool:
        """Whether it is more than a product."""
        return bool((self.shift != 0).any())


@dataclasses.dataclass(frozen=True)
class Link:
    """A node that is an affine map of one input."""

    node: ir.Node
    x: ir.Value
    map: Affine

    @property
    def output(self) -> ir.Value:
        """Its result."""
        return self.node.outputs[0]


def read_link(node: ir.Node) -> Link | None:
    """The affine map that a node is, if it is one and its numbers are finite."""
    with np.errstate(all="ignore"):
        link = _normalization(node) if is_standard(node, "BatchNormalization") else _arithmetic(node)
    if link is None or not (np.isfinite(link.map.scale).all() and np.isfinite(link.map.shift).all()):
        return None
    return link


def _arithmetic(node: ir.Node) -> Link | None:
    if not is_standard(node, "Add", "Sub", "Mul", "Div") or len(node.inputs) != 2:
        return None
    constants = [is_fixed(value) for value in node.inputs]
    if sum(constants) != 1:
        return None
    index = constants.index(True)
    x, value = node.inputs[1 - index], fixed(node.inputs[index])
    if x is None or value is None or value.size == 0 or (node.op_type == "Div" and index == 0):
        return None
    c, one, zero = np.asarray(value, np.float64), np.float64(1), np.float64(0)
    scale, shift = {
        "Add": (one, c),
        "Sub": (one, -c) if index == 1 else (-one, c),
        "Mul": (c, zero),
        "Div": (one / c, zero),
    }[node.op_type]
    return Link(node, x, Affine(np.asarray(scale), np.asarray(shift), c.shape))


def _normalization(node: ir.Node) -> Link | None:
    """BatchNormalization of inference, with one number a channel."""
    x = input_of(node, 0)
    rank = exact_rank(x)
    if (
        x is None
        or rank is None
        or rank < 2
        or len(node.inputs) != 5
        or len(node.outputs) != 1  # up to opset 13, those of training have more
    ):
        return None
    if node.attributes.get_int("training_mode", 0) or not node.attributes.get_int("spatial", 1):
        return None
    parts = [fixed(value) for value in node.inputs[1:]]
    if any(part is None or part.ndim != 1 or part.shape != parts[0].shape for part in parts):  # type: ignore[union-attr]
        return None
    gamma, beta, mean, variance = (np.asarray(part, np.float64) for part in parts)
    scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    shape = (-1,) + (1,) * (rank - 2)
    scale, shift = scale.reshape(shape), (beta - scale * mean).reshape(shape)
    return Link(node, x, Affine(scale, shift, scale.shape))


def chain_behind(value: ir.Value) -> list[Link]:
    """The links that follow a value, each the only reader of the one before it."""
    chain: list[Link] = []
    while (node := sole_reader(value)) is not None and (link := read_link(node)) is not None:
        if not _agree([*chain, link]):
            break
        chain.append(link)
        value = link.output
    return chain


def chain_before(value: ir.Value) -> list[Link]:
    """The links that make a value, in the order of the graph; who else reads it is no matter."""
    chain: list[Link] = []
    node = value.producer()
    while node is not None and (link := read_link(node)) is not None:
        if (chain and sole_reader(link.output) is None) or not _agree([link, *chain]):
            break
        chain.insert(0, link)
        node = link.x.producer()
    return chain


def _agree(chain: list[Link]) -> bool:
    """Whether constants broadcast to each other and the numbers of their map are no more than those of one of them."""
    shapes = [link.map.shape for link in chain]
    try:
        shape = np.broadcast_shapes(*shapes)
    except ValueError:
        return False
    return math.prod(shape) == max(math.prod(each) for each in shapes)


def composed(chain: list[Link]) -> Affine:
    """The map of a whole chain."""
    whole = chain[0].map
    for link in chain[1:]:
        whole = whole.then(link.map)
    return whole
