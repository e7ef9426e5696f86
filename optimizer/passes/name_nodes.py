"""Nodes without names are named after the tensors that they make; recipes, measurements and new nodes go by names."""

from __future__ import annotations

import onnx_ir as ir

from ..names import names_of, roots
from .plan import nested_nodes
from .rewriting import result_name


class NameNodes:
    """Give each node without a name that of its first output, or the next free one after it.

    Nodes of functions are named for themselves: inlining sees to it that no two have the same name. Of nodes that
    would be listed alike, as those of two branches may be, all but the first get the next free name, too.
    """

    def __call__(self, model: ir.Model) -> bool:
        """Name those of all graphs and functions; whether anything changed."""
        return sum(map(_name, roots(model))) + _set_apart(model.graph) > 0


def _name(root: ir.Graph) -> int:
    """How many had no name."""
    nameless = [node for node in root.all_nodes() if not node.name]
    for node in nameless:
        node.name = names_of(root).node(result_name(node) or node.op_type)
    return len(nameless)


def _set_apart(graph: ir.Graph) -> int:
    """How many had the name of another one within the same nodes."""
    seen: set[tuple[str, str | None]] = set()
    changed = 0
    for path, node in nested_nodes(graph, ""):
        if (path, node.name) in seen:
            node.name = names_of(graph).node(node.name or "")
            changed += 1
        seen.add((path, node.name))
    return changed
