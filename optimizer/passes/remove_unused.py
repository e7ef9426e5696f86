"""Dead code goes, in all graphs, and a node that stays keeps its outputs.

onnx-ir's pass also drops those outputs of live nodes that the standard calls optional. Some need each other: Attention
takes a past only where it gives the present, GroupQueryAttention likewise. Only of operators whose further outputs are
known to be by-products do unread ones go.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir

from .matching import is_foreign, is_standard

_WITH_BY_PRODUCTS = ("Dropout", "LayerNormalization", "MaxPool")


def remove_unused(model: ir.Model) -> bool:
    """Drop nodes and initializers that nothing reads, in all graphs and functions; whether there were any."""
    roots: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    counts = [_clean(root) for root in roots]
    return any(counts)


@contextmanager
def outputs_kept(model: ir.Model) -> Iterator[None]:
    """While a library drops dead code, and with it outputs of live nodes, which they get back."""
    roots: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    nodes = [node for root in roots for node in root.all_nodes() if len(node.outputs) > 1]
    before = {node: [(value.name, value.type, value.shape) for value in node.outputs] for node in nodes}
    yield
    for node, outputs in before.items():
        if node.graph is None:
            continue
        if len(node.outputs) < len(outputs):
            node.resize_outputs(len(outputs))
        for value, (name, kind, shape) in zip(node.outputs, outputs, strict=True):
            if name and not value.name:
                value.name, value.type, value.shape = name, kind, shape


@contextmanager
def unread_kept(model: ir.Model) -> Iterator[None]:
    """While a library removes nodes whose outputs nobody reads: those stay that ONNX Runtime runs for what they do."""
    kept = []
    for graph in (model.graph, *model.graph.subgraphs()):
        unread = [node.outputs[0] for node in graph if is_foreign(node) and node.outputs and _is_unread(node)]
        graph.outputs.extend(unread)
        kept.append((graph, len(unread)))
    yield
    for graph, count in kept:
        del graph.outputs[len(graph.outputs) - count :]


def _is_unread(node: ir.Node) -> bool:
    return not any(value.uses() or value.is_graph_output() for value in node.outputs)


def _clean(graph: ir.Graph | ir.Function) -> int:
    kept, count = set(graph.outputs), 0
    for node in reversed(graph):
        if not (is_foreign(node) or any(value in kept or value.uses() for value in node.outputs)):
            graph.remove(node, safe=True)
            count += 1
            continue
        _drop_trailing_inputs(node)
        if is_standard(node, *_WITH_BY_PRODUCTS) and not any(v in kept or v.uses() for v in node.outputs[1:]):
            node.resize_outputs(1)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                count += _clean(attribute.as_graph())
            elif attribute.type == ir.AttributeType.GRAPHS:
                count += sum(map(_clean, attribute.as_graphs()))
    return count + (_drop_initializers(graph, kept) if isinstance(graph, ir.Graph) else 0)


def _drop_trailing_inputs(node: ir.Node) -> None:
    given = len(node.inputs)
    while given and node.inputs[given - 1] is None:
        given -= 1
    node.resize_inputs(given)


def _drop_initializers(graph: ir.Graph, kept: set[ir.Value]) -> int:
    dead = [
        name
        for name, value in graph.initializers.items()
        if not (value.uses() or value in kept or value.is_graph_input())
    ]
    for name in dead:
        del graph.initializers[name]
    return len(dead)
