"""Dead code goes, in all graphs, and a node that stays keeps its outputs.

onnx-ir's pass also drops those outputs of live nodes that the standard calls optional. Some need each other: Attention
takes a past only where it gives the present, GroupQueryAttention likewise. Only of operators whose further outputs are
known to be by-products do unread ones go.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir

from ..graph.matching import is_foreign, is_standard
from ..graph.rewriting import detach
from ..model_io.names import roots, values_of
from ..model_io.traverse import inner_graphs

_WITH_BY_PRODUCTS = ("Dropout", "LayerNormalization", "MaxPool")


def remove_unused(model: ir.Model) -> bool:
    """Drop nodes and initializers that nothing reads, in all graphs and functions; whether there were any."""
    _forget_removed_readers(model)
    counts = [_clean(root) for root in roots(model)]
    return any(counts)


@contextmanager
def outputs_kept(model: ir.Model) -> Iterator[None]:
    """While a library drops dead code, and with it outputs of live nodes, which they get back."""
    nodes = [node for root in roots(model) for node in root.all_nodes() if len(node.outputs) > 1]
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


def _forget_removed_readers(model: ir.Model) -> None:
    """What a removed node had inside, such as a branch that is never taken, still reads values of graphs around it."""
    there = {node for root in roots(model) for node in root.all_nodes()}
    for root in roots(model):
        for value in values_of(root):
            for node in {node for node, _ in value.uses()} - there:
                detach(node)


def _clean(graph: ir.Graph) -> int:
    kept, count = set(graph.outputs), 0
    for node in reversed(graph):
        if not (is_foreign(node) or any(value in kept or value.uses() for value in node.outputs)):
            graph.remove(node, safe=True)
            detach(node)
            count += 1
            continue
        _drop_trailing_inputs(node)
        if is_standard(node, *_WITH_BY_PRODUCTS) and not any(v in kept or v.uses() for v in node.outputs[1:]):
            node.resize_outputs(1)
        count += sum(map(_clean, inner_graphs(node)))
    return count + _drop_initializers(graph, kept)


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
