"""Nodes that compute the same of the same, where one is enough, such as what each layer makes of the same sizes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import onnx_ir as ir

from ..graph.constants import is_computation, stored_constant

_SMALL = 16
"""Elements of a constant up to which it is told by its numbers."""


def merge_equal_nodes(graph: ir.Graph, values: Iterable[ir.Value]) -> None:
    """Let the readers of nodes of a sorted graph read equal ones ahead; nodes that nobody reads then stay.

    Args:
        graph: The graph.
        values: Of it; nodes that these depend on are merged, through operators that compute and nothing else.
    """
    ahead = _ahead(values)
    known: dict[Hashable, ir.Node] = {}
    for node in [node for node in graph if node in ahead]:
        key = _key(node)
        same = known.setdefault(key, node) if key is not None else node
        for old, new in zip(node.outputs, same.outputs, strict=True):
            if old is not new:
                ir.convenience.replace_all_uses_with(old, new)


def _ahead(values: Iterable[ir.Value]) -> set[ir.Node]:
    found: set[ir.Node] = set()
    waiting = list(values)
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node not in found and is_computation(node):
            found.add(node)
            waiting += [value for value in node.inputs if value is not None]
    return found


def _key(node: ir.Node) -> Hashable | None:
    """What equal nodes have in common; None for one that is kept."""
    attributes = [(name, _number(attribute)) for name, attribute in sorted(node.attributes.items())]
    if any(value is None for _, value in attributes) or any(value.is_graph_output() for value in node.outputs):
        return None
    inputs = tuple(value if value is None else _input(value) for value in node.inputs)
    return node.op_type, len(node.outputs), inputs, tuple(attributes)


def _number(attribute: ir.Attr) -> Hashable | None:
    """The value of an attribute; None where it is no number, text or small tensor."""
    value = attribute.value
    if attribute.is_ref():
        return None
    if isinstance(value, ir.TensorProtocol):
        return _tensor(value)
    return tuple(value) if isinstance(value, (tuple, list)) else value if isinstance(value, (int, float, str)) else None


def _input(value: ir.Value) -> Hashable:
    tensor = stored_constant(value)
    return (tensor is not None and _tensor(tensor)) or value


def _tensor(tensor: ir.TensorProtocol) -> Hashable | None:
    """What equal tensors have in common; None for a large one, or one of texts."""
    if tensor.size > _SMALL or tensor.dtype == ir.DataType.STRING:
        return None
    return int(tensor.dtype), tuple(tensor.shape.numpy()), tensor.numpy().tobytes()
