"""Weights that were rounded and stay in float as well, because somebody reads them so."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from ..graph.constants import sources_of, stored_constant
from ..graph.rewriting import result_name
from ..model_io import storage


def kept_in_float(model: ir.Model, weights: Iterable[ir.Value]) -> list[str]:
    """Warnings on constants that weights were rounded from and that the model still holds, with who reads them.

    Args:
        model: The rewritten model, without what is unused.
        weights: What products read before.
    """
    rounded = {source.name for value in weights for source in sources_of(value)}
    constants = list(storage.initializers(model))
    for graph in storage.graphs(model):
        constants += [value for node in graph if node.op_type == "Constant" for value in node.outputs]
    kept = {value.name: value for value in constants if value.name in rounded and _is_float(value)}
    return [f"{name} also stays in float: {_reader(value)}" for name, value in sorted(kept.items(), key=str)]


def _is_float(value: ir.Value) -> bool:
    tensor = stored_constant(value)
    return tensor is not None and tensor.dtype.is_floating_point()


def _reader(value: ir.Value) -> str:
    node = next((node for node, _ in value.uses()), None)
    if node is None:
        return "it is an output" if value.is_graph_output() else "it is an input"
    return f"node '{node.name or result_name(node)}' ({node.op_type}) reads it"
