"""Operators with float weights that no scheme knows: those of other domains than the standard's.

ONNX Runtime writes some into models that it saved after optimization: FusedConv, FusedGemm, FusedMatMul, Conv of its
own layouts. Reports name them, as they name every weight that stays in float.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir
from onnxpress.custom_ops import functions

from ..graph.constants import constant_of
from ..graph.rewriting import listed_names
from .plan import Decision, nested_nodes

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_OF_RUNTIME = ("com.microsoft", "com.ms.internal")


def plan_foreign(model: ir.Model) -> list[Decision]:
    """Decisions to leave the nodes of other domains that read a constant of floats with two axes or more."""
    return [
        Decision(node, path, False, _reason(node, model), size)
        for path, node in nested_nodes(model.graph, "")
        if node.domain not in ("", "ai.onnx", functions.DOMAIN) and (size := _weights(node))
    ]


def with_foreign(decisions: list[Decision], foreign: Iterable[Decision]) -> list[Decision]:
    """The decisions of a scheme, and those of the foreign nodes that it knows nothing of."""
    known = {name for decision in decisions for name in listed_names(decision.node, decision.path)}
    return [*decisions, *(decision for decision in foreign if decision.node_name not in known)]


def _weights(node: ir.Node) -> int:
    """Elements of the float constants that a node reads, but for vectors."""
    tensors = [constant_of(value) for value in node.inputs if value is not None]
    return sum(tensor.size for tensor in tensors if tensor and tensor.dtype in _FLOATS and len(tensor.shape) > 1)


def _reason(node: ir.Node, model: ir.Model) -> str:
    if node.op_identifier() in model.functions:
        return f"a call of a function of domain {node.domain}; clean-up inlines functions"
    advice = "; convert the model as it was before ONNX Runtime optimized it" if _is_of_runtime(node.domain) else ""
    return f"of domain {node.domain}, which no scheme takes{advice}"


def _is_of_runtime(domain: str) -> bool:
    return any(domain == own or domain.startswith(f"{own}.") for own in _OF_RUNTIME)
