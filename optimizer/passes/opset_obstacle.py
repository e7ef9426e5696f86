"""What has to be edited in a model for a newer opset of the standard domain, or why that is not known."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from ..names import roots
from .opset_steps import SAME, TESTED, Edit, Rise, edits

_OLDEST = 7  # ONNX Runtime has kernels of few operators that are older


def obstacle(model: ir.Model, version: int) -> str | None:
    """Why a model cannot be raised to an opset, None where it can be."""
    found = edits_to(model, version)
    return found if isinstance(found, str) else None


def older_graphs(model: ir.Model, version: int) -> Iterator[ir.Graph]:
    """The graphs of an older opset: the main one, and bodies of functions."""
    for graph in roots(model):
        if 0 < graph.opset_imports.get("", 0) < version:
            yield graph


def edits_to(model: ir.Model, version: int) -> list[Edit] | str:
    """The edits with which every node means what it meant, or why there are none."""
    found: list[Edit] = []
    for graph in older_graphs(model, version):
        rise = Rise(graph.opset_imports[""], version, graph if graph is model.graph else None)
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
