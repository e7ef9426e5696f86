"""Of nodes that compute the same, one stays."""

from __future__ import annotations

from collections.abc import Hashable

import onnx_ir as ir

from ..graph.constants import stored_constant
from ..graph.determinism import is_deterministic
from .base import GraphPass

_MOST = 16  # elements of a constant that is worth comparing


class MergeEqual(GraphPass):
    """Let the readers of a node read the one before it that has its operator, attributes and inputs.

    Inputs are the same, or constants of the same few numbers.

    Left: what draws numbers, operators of other domains, which might, nodes with graphs inside, constants of more
    than a few elements, and outputs of graphs. Only the main graph is changed.
    """

    def rewrite(self, model: ir.Model) -> bool:
        """Merge; whether anything changed."""
        changed = False
        first: dict[Hashable, ir.Node] = {}
        for node in list(model.graph):
            key = _key(node) if is_deterministic(node) else None
            if key is None or first.setdefault(key, node) is node:
                continue
            if any(value.is_graph_output() for value in node.outputs):
                continue
            ir.convenience.replace_all_uses_with(node.outputs, first[key].outputs)
            model.graph.remove(node, safe=True)
            changed = True
        return changed


def _key(node: ir.Node) -> Hashable | None:
    """What nodes have in common that compute the same; None where that is not told."""
    attributes = []
    for name, attribute in sorted(node.attributes.items()):
        value = attribute.value
        if attribute.is_ref():
            return None
        if attribute.type == ir.AttributeType.TENSOR:
            value = _numbers(value)
            if value is None:
                return None
        elif isinstance(value, (list, tuple)):
            value = tuple(value)
        elif not isinstance(value, (int, float, str, bytes)):
            return None
        attributes.append((name, attribute.type, repr(value)))  # by its text, -0 is not 0
    present = tuple(bool(value.name) for value in node.outputs)
    return node.op_identifier(), tuple(map(_input, node.inputs)), tuple(attributes), present


def _input(value: ir.Value | None) -> Hashable:
    tensor = None if value is None else stored_constant(value)
    return (None if tensor is None else _numbers(tensor)) or id(value)


def _numbers(tensor: ir.TensorProtocol) -> Hashable:
    """What constants have in common that are the same; None of many numbers, of texts and of what is still to come."""
    if isinstance(tensor, ir.LazyTensor) or tensor.dtype == ir.DataType.STRING or tensor.size > _MOST:
        return None
    return tensor.dtype, tuple(tensor.shape), tensor.tobytes()
