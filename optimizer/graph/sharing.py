"""Nodes that several readers share: they stand right behind the value they read."""

from __future__ import annotations

import onnx_ir as ir


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
