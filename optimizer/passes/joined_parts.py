"""The tensors that a tensor is joined of, each of which keeps its own range in it.

A tensor has one scale, which suits the largest of its numbers. Boxes up to 300 and scores up to 1 in one tensor, as
heads of detectors join them, leave no code between 0 and 1 to the scores. Whoever rounds a tensor asks for its parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ..traverse import inner_graphs
from .constants import is_constant, scalar
from .matching import input_of, is_standard

_JOINS = {"Where": (1, 2), "ScatterND": (0, 2), "ScatterElements": (0, 2)}  # and Concat of all
_THROUGH = (
    "AveragePool", "Clip", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
    "GlobalAveragePool", "Identity", "LeakyRelu", "MaxPool", "Neg", "Relu", "Reshape", "Resize", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
)  # fmt: skip
"""What hands numbers on, each about as large as it was."""


Parts = dict[ir.Value, float]


def joined_parts(graph: ir.Graph) -> dict[ir.Value, Parts]:
    """The parts of each value that has some, and the factor by which their numbers are larger in it.

    Followed: Concat, Where, If and scattered updates, within each other; operators that move, pool or bound numbers;
    sums with constants, and of tensors that are all joined; products with one constant number.
    """
    found: dict[ir.Value, Parts] = {}
    for node in graph:
        if is_standard(node, "If"):
            branches = [branch.outputs for branch in inner_graphs(node)]
            found.update(
                (value, _with_theirs(each, found)) for value, *each in zip(node.outputs, *branches, strict=True)
            )
            continue
        parts = _with_theirs(_joined(node), found) or _handed_on(node, found)
        if parts:
            found.update((value, parts) for value in node.outputs)
    return found


def _joined(node: ir.Node) -> list[ir.Value | None]:
    """What a node joins."""
    if is_standard(node, "Concat"):
        return list(node.inputs)
    return [input_of(node, index) for index in _JOINS[node.op_type]] if is_standard(node, *_JOINS) else []


def _with_theirs(values: Sequence[ir.Value | None], found: Mapping[ir.Value, Parts]) -> Parts:
    """Parts and what these are joined of."""
    parts: Parts = {}
    for value in values:
        if value is not None:
            parts |= {value: 1.0} | found.get(value, {})
    return parts


def _handed_on(node: ir.Node, found: Mapping[ir.Value, Parts]) -> Parts:
    """The parts of what a node reads, where their numbers keep their places beside each other."""
    varying = [value for value in node.inputs if value is not None and not is_constant(value)]
    if is_standard(node, *_THROUGH):
        return found.get(varying[0], {}) if varying else {}
    if is_standard(node, "Add", "Sub", "Sum") and all(value in found for value in varying):
        return {part: factor for value in varying for part, factor in found[value].items()}
    if is_standard(node, "Mul", "Div") and len(varying) == 1 and varying[0] in found:
        index = 1 if node.inputs[0] is varying[0] else 0
        number = scalar(node.inputs[index])
        if number and (node.op_type == "Mul" or index == 1):
            by = number if node.op_type == "Mul" else 1 / number
            return {part: factor * by for part, factor in found[varying[0]].items()}
    return {}
