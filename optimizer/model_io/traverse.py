"""All that lies in a model, whatever is inside of what."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


def graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph and those inside its nodes, functions' included."""
    yield model.graph
    roots: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for root in roots:
        yield from root.subgraphs()


def inner_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs that are attributes of a node; none for an attribute that stands for one of a function."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def initializers(model: ir.Model) -> Iterator[ir.Value]:
    """All initializers of all graphs, in order."""
    for graph in graphs(model):
        yield from graph.initializers.values()
