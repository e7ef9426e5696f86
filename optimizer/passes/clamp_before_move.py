"""Relu and Clip ahead of what only moves values: max(move(x), 0) = move(max(x, 0)).

Behind a product the clamp then costs nothing in INT8, where the rounding of the product's result saturates in place
of it; behind the move it would be an operator of its own, in float.
"""

from __future__ import annotations

import onnx_ir as ir

from ..graph.element_type import is_float32
from ..graph.matching import is_standard, sole_reader
from .base import GraphPass

_CLAMPS = ("Relu", "Clip")
_MOVES = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "DepthToSpace", "SpaceToDepth", "MaxPool")


class ClampBeforeMove(GraphPass):
    """Swap a Relu or Clip of float32 with the Transpose, Reshape, Flatten, Squeeze, DepthToSpace or MaxPool before it.

    Left: a move whose result others read, and a MaxPool with indices.
    """

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite the main graph; whether anything changed."""
        changed = False
        for node in list(model.graph):
            if is_standard(node, *_CLAMPS) and is_float32(node.outputs[0]):
                while (move := _move_ahead(node)) is not None:
                    _swap(model.graph, move, node)
                    changed = True
        return changed


def _move_ahead(clamp: ir.Node) -> ir.Node | None:
    value = clamp.inputs[0]
    move = value.producer() if value is not None else None
    if not is_standard(move, *_MOVES) or len(move.outputs) != 1:
        return None
    return move if sole_reader(move.outputs[0]) is clamp else None


def _swap(graph: ir.Graph, move: ir.Node, clamp: ir.Node) -> None:
    """X -> move -> clamp -> y becomes x -> clamp -> move -> y; y keeps its name and its readers."""
    x, moved, y = move.inputs[0], move.outputs[0], clamp.outputs[0]
    ir.convenience.replace_all_uses_with(y, moved, replace_graph_outputs=True)
    clamp.replace_input_with(0, x)
    move.replace_input_with(0, y)
    moved.name, y.name = y.name, moved.name
    moved.shape, moved.type = moved.shape or y.shape, moved.type or y.type
    y.shape, y.type = (None, None) if x is None else (x.shape, x.type)
    graph.remove(move)
    graph.insert_after(clamp, move)  # and not the clamp ahead, whose bounds may be made in between
