"""Names of values and nodes: one allocator for a graph and those inside its nodes, since inner graphs see outer names.

ONNX tells values apart by names alone, and two of one name within sight of each other make a model that no runtime
loads, or one that reads the wrong tensor. So values are unique over the whole model from the moment it is read, a
rewrite asks `names_of` for a free name, and the steps of libraries, which look at one graph alone, run within
`names_kept_apart`. Bodies of functions see nothing of the model, and each has names for itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import onnx_ir as ir

_KEY = "onnxpress.names"


class Names:
    """The names that are taken in a graph and those inside its nodes.

    Attributes:
        graphs: All of them.
    """

    def __init__(self, root: ir.Graph) -> None:
        self.graphs: set[ir.Graph] = {root, *root.subgraphs()}
        self._values = {value.name for value in values_of(root) if value.name}
        self._nodes = {node.name for node in root.all_nodes() if node.name}
        self._last: Counter[str] = Counter()
        for graph in self.graphs:
            graph.meta[_KEY] = self

    def value(self, wanted: str) -> str:
        """A name for a new value: the wanted one, or the next free one after it, which is taken from then on."""
        return self._take(self._values, wanted)

    def node(self, wanted: str) -> str:
        """The same for a new node."""
        return self._take(self._nodes, wanted)

    def release(self, name: str | None) -> None:
        """Take back the name of a value that is called otherwise now."""
        self._values.discard(name or "")

    def _take(self, taken: set[str], wanted: str) -> str:
        name = wanted
        while name in taken:
            self._last[wanted] += 1
            name = f"{wanted}_{self._last[wanted]}"
        taken.add(name)
        return name


def names_of(graph: ir.Graph) -> Names:
    """The names of the model that a graph is part of; of a graph that nobody settled, those of what is inside it."""
    names = graph.meta.get(_KEY)
    if isinstance(names, Names) and graph in names.graphs:  # a clone has the mark of the graph that it was made of
        return names
    return Names(graph)


def settle_names(model: ir.Model) -> bool:
    """Make the names of all values unique, graph by graph and outer ones first; whether any changed.

    Inputs and outputs of the model keep their names.
    """
    return _settle(model, {}, {})


def copy_of(model: ir.Model) -> ir.Model:
    """A clone with names of its own; tensors are shared."""
    clone = model.clone()
    settle_names(clone)
    return clone


@contextmanager
def names_kept_apart(model: ir.Model) -> Iterator[None]:
    """While others add values and nodes: afterwards, those that have a name of one that was there get another."""
    values = {id(value): value.name for root in roots(model) for value in values_of(root)}
    nodes = {id(node): node.name for root in roots(model) for node in root.all_nodes()}
    yield
    _settle(model, values, nodes)


def _settle(model: ir.Model, values: Mapping[int, str | None], nodes: Mapping[int, str | None]) -> bool:
    """Rename values, and nodes where some are known, whose name is taken by an output, a known one or an earlier one.

    Args:
        model: The model.
        values: Names by identity of those known. What has another name by now is another value in the same memory.
        nodes: The same of nodes.
    """
    changed = False
    for root in roots(model):
        names = Names(root)
        ends = {*root.inputs, *root.outputs}
        order = sorted(values_of(root), key=lambda value: (value not in ends, values.get(id(value), "") != value.name))
        seen: set[str] = set()
        for value in order:
            if value.name in seen:
                value.name = names.value(value.name)
                changed = True
            if value.name:
                seen.add(value.name)
        if nodes:
            known = {node.name for node in root.all_nodes() if nodes.get(id(node), "") == node.name}
            for node in root.all_nodes():
                if node.name and node.name in known and nodes.get(id(node), "") != node.name:
                    node.name = names.node(node.name)
    return changed


def roots(model: ir.Model) -> list[ir.Graph]:
    """The main graph and the bodies of functions, whose nodes see nothing outside."""
    return [model.graph, *(function.graph for function in model.functions.values())]


def values_of(root: ir.Graph) -> Iterator[ir.Value]:
    """Inputs, initializers and results, each once; those of outer graphs first."""
    seen: set[ir.Value] = set()
    for graph in (root, *root.subgraphs()):
        results = (value for node in graph for value in node.outputs)
        for value in (*graph.inputs, *graph.initializers.values(), *results):
            if value not in seen:
                seen.add(value)
                yield value
