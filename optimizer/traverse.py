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


def initializers(model: ir.Model) -> Iterator[ir.Value]:
    """All initializers of all graphs, in order."""
    for graph in graphs(model):
        yield from graph.initializers.values()
