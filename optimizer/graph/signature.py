"""What a model promises of its inputs, kept from steps that take it for more, or change it.

An input with a default is no constant, for a caller may override it (ONNX IR, version 4 and later); and what a Loop
carries may change its shape from turn to turn, whatever its body states of the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir

from .matching import is_standard


@contextmanager
def signature_kept(model: ir.Model) -> Iterator[None]:
    """While others rewrite a model: they see no defaults of inputs, and no shapes of what loops carry."""
    defaults = {value.name: value.const_value for value in model.graph.inputs if value.is_initializer()}
    for value in model.graph.inputs:
        if value.name in defaults:
            model.graph.initializers.pop(value.name or "")
            value.const_value = None
    shapes = {value.name: value.shape for value in model.graph.inputs}
    carried = [(value, value.shape) for node in model.graph.all_nodes() for value in _carried(node)]
    for value, _ in carried:
        value.shape = None
    yield
    for value, shape in carried:
        value.shape = shape
    for value in model.graph.inputs:  # by name: the graph may be another, where a step was taken back
        value.shape = shapes[value.name]
        if value.name in defaults:
            value.const_value = defaults[value.name]
            model.graph.register_initializer(value)


def _carried(node: ir.Node) -> list[ir.Value]:
    body = node.attributes.get("body")
    return list(body.as_graph().inputs)[2:] if is_standard(node, "Loop") and body is not None else []
