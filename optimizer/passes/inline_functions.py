"""Functions of a model become nodes of its graphs, as ONNX Runtime makes them when it loads it."""

from __future__ import annotations

import onnx_ir as ir
from onnxpress.custom_ops import functions

from ..model_io.own_results import make_own
from .base import GraphPass


class InlineFunctions(GraphPass):
    """Inline by onnx-ir, but for bodies of our own operators, which are for whoever lacks our library.

    Left: functions in the name of standard operators, which ONNX Runtime does not look at. A function means its
    operators as the model does, whatever opset it asks for: so ONNX Runtime reads it.
    """

    def rewrite(self, model: ir.Model) -> bool:
        """Inline; whether there was anything."""
        import onnx_ir.passes.common as common

        for function in model.functions.values():
            if not _is_inlined(function):
                continue
            make_own(function.graph)  # what is handed through would give the model's input another name
            for domain in function.opset_imports:
                if domain in model.opset_imports:
                    function.opset_imports[domain] = model.opset_imports[domain]
        return common.InlinePass(_is_inlined)(model).modified


def _is_inlined(function: ir.Function) -> bool:
    return function.domain not in (functions.DOMAIN, "", "ai.onnx")
