"""Raise the opset of the standard domain, where a form needs newer operators."""

from __future__ import annotations

import logging

import onnx_ir as ir

from ..errors import OnnxpressError
from .rewriting import result_name


class RaiseOpset:
    """Convert a model to at least `version`. Weights are not copied, so models over 2 GB are fine.

    Raises:
        OnnxpressError: A node cannot be converted.
    """

    def __init__(self, version: int) -> None:
        self.version = version

    def __call__(self, model: ir.Model) -> bool:
        """Convert; whether anything changed."""
        current = model.opset_imports.get("", 0)
        if current == 0 or current >= self.version:
            return False
        from onnxscript import version_converter

        noted = {result_name(node): dict(node.meta) for node in model.graph.all_nodes() if node.meta}
        logging.getLogger("onnxscript").setLevel(logging.ERROR)  # what matters is checked below
        try:
            version_converter.convert_version(model, self.version, fallback=True)
        except Exception as error:  # converters raise whatever their adapters do
            raise OnnxpressError(f"opset {current} cannot be raised to {self.version}: {error}") from error
        for node in model.graph.all_nodes():  # new objects, whose tensors have the same names
            node.meta.update(noted.get(result_name(node), {}))
        if model.opset_imports.get("", 0) < self.version:
            raise OnnxpressError(
                f"opset {current} cannot be raised to {self.version}; export the model with opset {self.version}, "
                "or use --form qoperator"
            )
        return True
