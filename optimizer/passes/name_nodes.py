"""Nodes without names are named after the tensors that they make; recipes, measurements and new nodes go by names."""

from __future__ import annotations

import onnx_ir as ir

from .rewriting import result_name


class NameNodes:
    """Give each node without a name that of its first output, or the next free one after it.

    Nodes of functions are named for themselves: inlining sees to it that no two have the same name.
    """

    def __call__(self, model: ir.Model) -> bool:
        """Name those of all graphs and functions; whether anything changed."""
        groups = [list(model.graph.all_nodes()), *(list(each.all_nodes()) for each in model.functions.values())]
        return sum(map(_name, groups)) > 0


def _name(nodes: list[ir.Node]) -> int:
    """How many had no name."""
    taken = {node.name for node in nodes}
    nameless = [node for node in nodes if not node.name]
    for node in nameless:
        base = result_name(node) or node.op_type
        name, count = base, 1
        while name in taken:
            name, count = f"{base}_{count}", count + 1
        node.name = name
        taken.add(name)
    return len(nameless)
