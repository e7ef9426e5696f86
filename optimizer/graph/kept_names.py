"""Names that libraries' rewrites take from nodes, given back: recipes and reports call these as the user's model does.

Inlining numbers the nodes of a function that is called twice, a branch of an If that is always taken gives its nodes
other names, and a rule that folds a BatchNormalization into a Conv makes a new Conv.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir

from .matching import is_standard
from .rewriting import forget_name, original_name, remember_name, take_over_name

_SHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
"""What gives a tensor another shape, each of which may be written as another."""


@contextmanager
def inner_names_kept(model: ir.Model) -> Iterator[None]:
    """While nodes of functions and of graphs inside nodes move into other graphs.

    Each keeps the name that it has inside where no other node has it by then, and else has its new one alone.
    """
    outer = set(model.graph)
    for node in [*model.graph.all_nodes(), *(node for each in model.functions.values() for node in each.all_nodes())]:
        if node not in outer:
            remember_name(node)
    yield
    nodes = list(model.graph.all_nodes())
    taken = {node.name for node in nodes}
    for node in nodes:
        name = original_name(node)
        if name and name not in taken:
            node.name = name
            taken.add(name)
        elif name != node.name:
            forget_name(node)


@contextmanager
def replaced_names_kept(model: ir.Model) -> Iterator[None]:
    """While rules replace nodes: a new node stands for the nearest of its operator among those in whose place it is.

    That is found by the tensor that it makes, whose name stays, on the way back through the nodes that are gone.
    """
    before = {node: [value.name or "" for value in node.inputs if value] for node in model.graph.all_nodes()}
    makers = {value.name: node for node in before for value in node.outputs if value.name}
    yield
    taken: set[ir.Node] = set()
    for node in model.graph.all_nodes():
        if node in before:
            continue
        level = [makers.get(value.name or "") for value in node.outputs]
        while gone := [old for old in level if old is not None and old.graph is None]:
            same = next((old for old in gone if old.op_identifier() == node.op_identifier()), None)
            if same is None and len(gone) == 1 and is_standard(node, *_SHAPES) and is_standard(gone[0], *_SHAPES):
                same = gone[0]
            if same is not None:
                if same not in taken:
                    take_over_name(node, same)
                    taken.add(same)
                break
            level = [makers.get(name) for name in dict.fromkeys(name for old in gone for name in before[old])]
