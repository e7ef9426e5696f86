"""A past and a present in one buffer, for clients that bind both to the same memory.

Such a buffer is longer than what is in it. A graph that reads the length of the past off the shape of its input would
take the buffer's; the mask, which is as long as past and new tokens together, tells it in any case:

    Shape(past)    becomes    [batch, heads, length of attention_mask - length of input_ids, width]
"""

from __future__ import annotations

from collections.abc import Container, Iterator

import onnx
from onnx import helper

_ATTENTION = ("com.microsoft", "GroupQueryAttention")
_KEPT = {3: 1, 4: 2}
"""Inputs of the attention for the past, and the outputs for the present."""
_AXIS = 2
_RANK = 4
_OPSET = 15
"""From which Shape hands out single sizes."""


def share_buffers(graph: onnx.GraphProto, opset: int) -> bool:
    """Make a model right with past and present in one buffer, in place.

    Args:
        graph: With inputs input_ids [batch, new] and attention_mask [batch, past + new], and keys and values of the
            past, [batch, heads, past, width].
        opset: Of the standard domain.

    Returns:
        Whether it is: attentions read the past and keep it, and others its shape alone. Else the graph is as it was.
    """
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.input}
    past = {name for name, rank in ranks.items() if rank == _RANK}
    if opset < _OPSET or not past or any(ranks.get(name) != 2 for name in ("input_ids", "attention_mask")):
        return False
    shapes, kept = [], {value.name for value in graph.output}
    for node in graph.node:
        if past & set(_inner_names(node)):
            return False
        for index, name in enumerate(node.input):
            if name not in past:
                continue
            if node.op_type == "Shape" and node.domain in ("", "ai.onnx"):
                shapes.append(node)
            elif not _keeps(node, index, kept):
                return False
    if shapes:
        _tell_length(graph, shapes)
    return True


def _keeps(node: onnx.NodeProto, index: int, outputs: Container[str]) -> bool:
    """Whether an attention reads a past in this place, and hands out the present as the graph does."""
    if (node.domain, node.op_type) != _ATTENTION or index not in _KEPT or len(node.output) <= _KEPT[index]:
        return False
    return node.output[_KEPT[index]] in outputs


def _inner_names(node: onnx.NodeProto) -> Iterator[str]:
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for each in inner.node:
                yield from each.input
                yield from _inner_names(each)
            yield from (value.name for value in inner.output)


def _tell_length(graph: onnx.GraphProto, shapes: list[onnx.NodeProto]) -> None:
    taken = {name for node in graph.node for name in (node.name, *node.input, *node.output)}
    prefix = "past_length"
    while any(name.startswith(prefix) for name in taken):
        prefix += "_"

    def sizes(name: str, axis: int, end: int, out: str) -> onnx.NodeProto:
        return helper.make_node("Shape", [name], [out], f"{prefix}/{out}", start=axis, end=end)

    whole, new, length = (f"{prefix}.{each}" for each in ("whole", "new", "difference"))
    first = [
        sizes("attention_mask", 1, 2, whole), sizes("input_ids", 1, 2, new),
        helper.make_node("Sub", [whole, new], [length], f"{prefix}/{length}"),
    ]  # fmt: skip
    for number, node in enumerate(shapes):
        given = {attribute.name: attribute.i for attribute in node.attribute}
        parts = []
        for axis in range(*slice(given.get("start"), given.get("end")).indices(_RANK)):
            parts.append(length if axis == _AXIS else f"{prefix}.{number}.{axis}")
            if axis != _AXIS:
                first.append(sizes(node.input[0], axis, axis + 1, parts[-1]))
        if length in parts:
            node.CopyFrom(helper.make_node("Concat", parts, list(node.output), node.name, axis=0))
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*first, *rest])
