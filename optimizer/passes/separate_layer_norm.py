"""The residual sum before a LayerNormalization, or one by the root mean square, is written as Sum.

ONNX Runtime fuses Add and the norm to SkipLayerNormalization or SkipSimplifiedLayerNormalization, whose CPU kernels are
slower than the two. Its rule looks for Add alone, and Sum of two tensors is the same number.
"""

from __future__ import annotations

import onnx_ir as ir

from ..graph.constants import is_constant
from ..graph.matching import RMS_NORM
from ..graph.rewriting import insert_before, replace
from .base import GraphPass

_STANDARD = ("", "ai.onnx")


class SeparateLayerNorm(GraphPass):
    """Write Add as Sum where a norm reads it.

    Cases: LayerNormalization and SimplifiedLayerNormalization as a node; the first one spelled out, as exports below
    opset 17 have it, which begins with the mean (ReduceMean) and the difference from it (Sub) of one value. An Add of a
    constant is a bias and stays.
    """

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite the main graph; whether anything changed."""
        found = [node for node in model.graph if _is_residual(node) and _is_normalized(node.outputs[0])]
        for node in found:
            total = insert_before(node, "Sum", list(node.inputs), node.outputs[0], suffix="")
            producer = total.producer()
            assert producer is not None
            producer.name = node.name
            replace(node, total)
        return bool(found)


def _is_residual(node: ir.Node) -> bool:
    return (
        node.op_type == "Add"
        and node.domain in _STANDARD
        and len(node.inputs) == 2
        and all(value is not None and not is_constant(value) for value in node.inputs)
    )


def _is_normalized(value: ir.Value) -> bool:
    readers = {node.op_type for node, index in value.uses() if index == 0 and node.domain in _STANDARD}
    return not readers.isdisjoint(("LayerNormalization", RMS_NORM)) or {"ReduceMean", "Sub"} <= readers
