"""Graphs inside nodes return what they make themselves.

A branch that returns a value of the graph around it has no node for that; ONNX Runtime refuses such a model, and asks
for an Identity. One that returns a constant of its own, or one value twice, is right, but has to be changed before
its nodes can take the place of the If.
"""

from __future__ import annotations

import onnx_ir as ir

from .names import names_of
from .traverse import inner_graphs


class OwnResults:
    """Add an Identity to branches and bodies for each result that comes from the graph around them."""

    def __call__(self, model: ir.Model) -> bool:
        """Add them; whether there were any."""
        return _visit(model.graph, {}) > 0


def make_own(graph: ir.Graph) -> None:
    """Let each result of a branch be one that a node of it makes, and no two the same."""
    seen: set[ir.Value] = set()
    for index, value in enumerate(list(graph.outputs)):
        producer = value.producer()
        if value in seen or producer is None or producer.graph is not graph:
            _add_identity(graph, index, value)
        seen.add(value)


def _visit(graph: ir.Graph, outer: dict[str, ir.Value]) -> int:
    """How many were added in the graphs inside of a graph, which see what is around it by name."""
    seen = dict(outer)
    for value in (*graph.inputs, *graph.initializers.values()):
        seen[value.name or ""] = value
    count = 0
    for node in graph:
        for inner in inner_graphs(node):
            own = {*inner.inputs, *inner.initializers.values()}
            for index, value in enumerate(list(inner.outputs)):
                producer = value.producer()
                if value not in own and (producer is None or producer.graph is not inner) and value.name in seen:
                    _add_identity(inner, index, seen[value.name])
                    count += 1
            count += _visit(inner, seen)
        for value in node.outputs:
            seen[value.name or ""] = value
    return count


def _add_identity(graph: ir.Graph, index: int, value: ir.Value) -> None:
    wanted, names = f"{graph.name}_{value.name}_result_{index}", names_of(graph)
    node = ir.node("Identity", [value], name=names.node(wanted))
    result = node.outputs[0]
    result.name, result.type, result.shape = names.value(wanted), value.type, value.shape
    graph.append(node)
    graph.outputs[index] = result
