"""A Sum of two values is an Add, which has an int8 form where Sum has none."""

from __future__ import annotations

import onnx_ir as ir

from ..graph.matching import is_standard, opset_of
from ..graph.rewriting import insert_before, replace, required, take_over_name
from .base import GraphPass

_BROADCASTS = 8  # the opset from which Sum broadcasts, as Add does from 7 on


class SumToAdd(GraphPass):
    """Write each Sum of two inputs as an Add.

    Left: a Sum of more inputs, or of one, and models older than opset 8.
    """

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite the main graph; whether anything changed."""
        if opset_of(model) < _BROADCASTS:
            return False
        found = [node for node in model.graph if is_standard(node, "Sum") and len(node.inputs) == 2]
        for node in found:
            added = insert_before(node, "Add", list(node.inputs), node.outputs[0], suffix="_add")
            take_over_name(required(added.producer()), node)
            replace(node, added)
        return bool(found)
