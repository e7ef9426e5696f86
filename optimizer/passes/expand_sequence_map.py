"""SequenceMap becomes the Loop that its definition says: ONNX Runtime rewrites it so before it runs it.

    SequenceMap(s, a) {x, b -> y}  =  Loop(SequenceLength(s), SequenceEmpty()) {i, ys -> SequenceInsert(ys, y)}
                                      with x = SequenceAt(s, i) and, of a sequence a, b = SequenceAt(a, i), else b = a

Where an execution provider is there it does that only after it looked for functions and asked the provider in the graph
inside: it fails at nodes of our own domain, which are functions, and version 1.23 at all that the provider takes in the
Loop. In a Loop that was one from the beginning they run.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxpress.custom_ops import functions

from ..graph.matching import is_standard
from ..graph.rewriting import required, set_names
from ..graph.weight_form import MICROSOFT
from ..model_io.names import names_of
from .base import GraphPass

_DOMAINS = {functions.DOMAIN, MICROSOFT}


class ExpandSequenceMap(GraphPass):
    """Expand the SequenceMap nodes that hold products of low-bit weights.

    Left: those of whose results' elements the type is unknown.
    """

    def rewrite(self, model: ir.Model) -> bool:
        """Expand; whether anything changed."""
        found = [
            node for node in model.graph.all_nodes() if is_standard(node, "SequenceMap") and _can_be_expanded(node)
        ]
        for node in found:
            _expand(node)
        return bool(found)


def _can_be_expanded(node: ir.Node) -> bool:
    body = node.attributes["body"].as_graph()
    rewritten = any(each.domain in _DOMAINS or is_standard(each, "DequantizeLinear") for each in body.all_nodes())
    return rewritten and all(isinstance(value.type, ir.TensorType) for value in body.outputs)


def _expand(node: ir.Node) -> None:
    graph, body = required(node.graph), node.attributes["body"].as_graph()
    sequence = required(node.inputs[0])
    length = _node(graph, node, "SequenceLength", [sequence], "length")
    graph.insert_before(node, length)
    empty = [_node(graph, node, "SequenceEmpty", [], "empty", dtype=int(required(v.dtype))) for v in body.outputs]
    for each in empty:
        graph.insert_before(node, each)
    names = names_of(body)
    index, going = (
        ir.Value(name=names.value(f"{node.name}_{what}"), type=ir.TensorType(kind), shape=ir.Shape([]))
        for what, kind in (("index", ir.DataType.INT64), ("going", ir.DataType.BOOL))
    )
    made = [_sequence(names.value(f"{node.name}_{number}_so_far"), value) for number, value in enumerate(body.outputs)]
    _read_inside(node, body, index)
    results = list(body.outputs)
    goes_on = _node(body, node, "Identity", [going], "goes_on")
    longer = [_node(body, node, "SequenceInsert", list(pair), "longer") for pair in zip(made, results, strict=True)]
    body.extend([goes_on, *longer])
    goes_on.outputs[0].type = going.type
    for each, value in zip(longer, made, strict=True):
        each.outputs[0].type = value.type
    body.inputs[:] = [index, going, *made]
    body.outputs[:] = [goes_on.outputs[0], *(each.outputs[0] for each in longer)]
    node.attributes.pop("body")
    loop = ir.Node(
        "", "Loop", [length.outputs[0], None, *(each.outputs[0] for each in empty)],
        [ir.AttrGraph("body", body)], num_outputs=len(node.outputs), name=node.name,
    )  # fmt: skip
    graph.insert_before(node, loop)
    for old, new in zip(node.outputs, loop.outputs, strict=True):
        new.type, name = old.type, old.name
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        old.name, new.name = None, name
    graph.remove(node, safe=True)


def _read_inside(node: ir.Node, body: ir.Graph, index: ir.Value) -> None:
    """Let what reads an input of the body read the element of the sequence, or the tensor, that was handed in."""
    first = next(iter(body))
    for place, (outer, inner) in enumerate(zip(node.inputs, list(body.inputs), strict=True)):
        outer = required(outer)
        is_sequence = place == 0 or isinstance(outer.type, ir.SequenceType)
        read = _node(body, node, *(("SequenceAt", [outer, index]) if is_sequence else ("Identity", [outer])), "element")
        read.outputs[0].type = inner.type
        body.insert_before(first, read)
        ir.convenience.replace_all_uses_with(inner, read.outputs[0], replace_graph_outputs=True)


def _sequence(name: str, element: ir.Value) -> ir.Value:
    return ir.Value(name=name, type=ir.SequenceType(ir.TensorType(required(element.dtype))))


def _node(
    graph: ir.Graph, like: ir.Node, op_type: str, inputs: list[ir.Value], what: str, **attributes: int
) -> ir.Node:
    node = ir.node(op_type, inputs, attributes=attributes)
    set_names(node, graph, f"{like.name}_{what}", f"{like.name}_{what}")
    return node
