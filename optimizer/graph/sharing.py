"""Nodes that several readers share: they stand right behind the value they read."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from .rewriting import set_names


def insert_behind(value: ir.Value, graph: ir.Graph, node: ir.Node) -> ir.Node:
    """Put a node into a graph as early as `value` is there.

    Args:
        value: What the node reads: made in this graph, or anywhere around it.
        graph: Where the readers are.
        node: The new node.

    Returns:
        The node.
    """
    producer = value.producer()
    if producer is not None and producer.graph is graph:
        graph.insert_after(producer, node)
    elif len(graph):
        graph.insert_before(graph[0], node)
    else:
        graph.append(node)
    return node


def made_behind(
    value: ir.Value, graph: ir.Graph, op_type: str, inputs: Sequence[ir.Value], name: str, **attributes: int
) -> ir.Value:
    """The output of a new standard node that `insert_behind` puts; the next free names after this one are taken."""
    node = ir.node(op_type, inputs, attributes=attributes)
    set_names(node, graph, name, f"{name}_output")
    return insert_behind(value, graph, node).outputs[0]
