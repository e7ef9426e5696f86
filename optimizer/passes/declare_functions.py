"""What a model says of the nodes of our own domain in it."""

from __future__ import annotations

import onnx_ir as ir
from onnxpress.custom_ops import functions

from .remove_unused import remove_unused

_OVERLOAD_IR_VERSION = 10


def add_function(model: ir.Model, function: ir.Function) -> ir.Function:
    """Let a model hold the body of a node of our domain, once a variant; the one that it holds is returned."""
    model.graph.opset_imports.setdefault(functions.DOMAIN, functions.OPSET)
    return model.functions.setdefault(function.identifier(), function)


def declare_functions(model: ir.Model) -> None:
    """Remove what nobody uses any more, and declare our domain where nodes of it have their bodies beside them."""
    remove_unused(model)
    if any(function.domain == functions.DOMAIN for function in model.functions.values()):
        model.graph.opset_imports[functions.DOMAIN] = functions.OPSET
        model.ir_version = max(model.ir_version, _OVERLOAD_IR_VERSION)
