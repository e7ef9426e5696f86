"""Raise the opset of the standard domain, where a form needs newer operators."""

from __future__ import annotations

import onnx_ir as ir

from ..errors import OnnxpressError
from .opset_obstacle import edits_to, obstacle, older_graphs


class RaiseOpset:
    """Let a model be of opset `version` at least; every node means what it meant, or nothing is changed.

    Bodies of functions are raised with the model, but for those that are of a newer opset already.

    Raises:
        OnnxpressError: Of a node it is not known how it is written in the newer opset.
    """

    def __init__(self, version: int) -> None:
        self.version = version

    def __call__(self, model: ir.Model) -> bool:
        """Convert; whether anything changed."""
        found = edits_to(model, self.version)
        if isinstance(found, str):
            raise OnnxpressError(f"{found}; export the model with opset {self.version}")
        for edit in found:
            edit()
        raised = list(older_graphs(model, self.version))
        for graph in raised:
            graph.opset_imports[""] = self.version
        return bool(raised)

    def obstacle(self, model: ir.Model) -> str | None:
        """Why a model cannot be raised, None where it can be."""
        return obstacle(model, self.version)
