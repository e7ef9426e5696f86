"""Raise the opset of the standard domain, where a form needs newer operators."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from ..errors import OnnxpressError
from ..model_io.names import roots
from .base import GraphPass
from .opset_steps import SAME, TESTED, Edit, Rise, edits

_OLDEST = 7  # ONNX Runtime has kernels of few operators that are older


class RaiseOpset(GraphPass):
    """Let a model be of opset `version` at least; every node means what it meant, or nothing is changed.

    Bodies of functions are raised with the model, but for those that are of a newer opset already.

    Raises:
        OnnxpressError: Of a node it is not known how it is written in the newer opset.
    """

    def __init__(self, version: int) -> None:
        self.version = version

    def rewrite(self, model: ir.Model) -> bool:
        """Convert; whether anything changed."""
        found = self._edits(model)
        if isinstance(found, str):
            raise OnnxpressError(f"{found}; export the model with opset {self.version}")
        for edit in found:
            edit()
        raised = list(self._raised(model))
        for graph in raised:
            graph.opset_imports[""] = self.version
        return bool(raised)

    def obstacle(self, model: ir.Model) -> str | None:
        """Why a model cannot be raised, None where it can be."""
        found = self._edits(model)
        return found if isinstance(found, str) else None

    def _raised(self, model: ir.Model) -> Iterator[ir.Graph]:
        """The graphs of an older opset: the main one, and bodies of functions."""
        for graph in roots(model):
            if 0 < graph.opset_imports.get("", 0) < self.version:
                yield graph

    def _edits(self, model: ir.Model) -> list[Edit] | str:
        found: list[Edit] = []
        for graph in self._raised(model):
            rise = Rise(graph.opset_imports[""], self.version, graph if graph is model.graph else None)
            for node in graph.all_nodes():
                wanted = _edits_of(node, rise)
                if isinstance(wanted, str):
                    what = f"node '{node.name}' ({node.op_type})"
                    return f"opset {rise.current} cannot be raised to {rise.target}: {what}: {wanted}"
                found += wanted
        return found


def _edits_of(node: ir.Node, rise: Rise) -> list[Edit] | str:
    if node.domain != "" or _since(node, rise.current) == _since(node, rise.target):
        return []
    is_older = rise.current < _OLDEST and _since(node, rise.current) != _since(node, _OLDEST)
    if is_older or rise.target > TESTED or node.op_type not in SAME:
        return "it is not known to mean the same there"
    return edits(node, rise)


def _since(node: ir.Node, opset: int) -> int | None:
    """The opset that the operator is as it is since; None where there is no such operator."""
    import onnx

    try:
        return onnx.defs.get_schema(node.op_type, opset, "").since_version
    except onnx.defs.SchemaError:
        return None
