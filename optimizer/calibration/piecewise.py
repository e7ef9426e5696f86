"""A model that is run piece by piece, and may be changed behind what has run.

Each piece begins at what the pieces before it left: the tensors that nodes ahead read. These are held for every set of
inputs, as codes where there are some: what a DequantizeLinear makes of them is made anew. So all pieces together cost
what two runs of the whole model do, because the nodes whose results are asked for run once for these and once more,
changed, in the piece behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..graph.matching import values_read
from ..runtime.feeds import Feeds
from .observe import Observer

_HELD = frozenset({
    ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.INT64, ir.DataType.INT32,
    ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.BOOL,
})  # fmt: skip
"""Types whose arrays go out of a session and into the next one."""


class Piecewise:
    """A model between two of its pieces."""

    def __init__(self, model: ir.Model, goals: Sequence[str], data: Sequence[Feeds]) -> None:
        """Begin before the first node.

        Args:
            model: The model, whose constants may change between two pieces.
            goals: All tensors of the main graph that will be asked for.
            data: Sets of inputs.
        """
        self._model, self._held = model, [dict[str, Any](feeds) for feeds in data]
        self._values = {value.name: value for node in model.graph for value in node.outputs if value.name}
        inputs = [value for value in model.graph.inputs if not value.is_initializer()]
        self._done: set[ir.Node] = set()
        self._ahead = set(goals)
        self._known = {value.name or "": value for value in inputs}
        self._depends = _behind(model.graph, inputs)

    def run(self, names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """The tensors of these names, which depend on no other goal that is still ahead, for each set of inputs.

        Raises:
            OnnxpressError: The runtime refuses or fails.
        """
        goals = [self._values[name] for name in names]
        last = {value.producer() for value in goals}
        piece = self._before(goals)
        self._done |= {node for node in piece if node not in last and self._can_be_held(node)}
        self._ahead -= set(names)
        ahead = self._before([*goals, *(self._values[name] for name in self._ahead)])
        kept = {
            value.name or "": value
            for node in (*ahead, *last)
            if node is not None
            for value in values_read(node)
            if value.name in self._known or value.producer() in self._done
        }
        new = [value for name, value in kept.items() if name not in self._known]
        read = {value for node in piece for value in values_read(node)}
        given = [value for value in self._known.values() if value in read]
        observer = self._observer(given, [*new, *goals])
        made = [*(value.name or "" for value in new), *names]
        for held in self._held:
            found = dict(zip(made, observer.run({v.name or "": held[v.name or ""] for v in given}), strict=True))
            wanted = {name: found[name] for name in names}
            held.update({name: found[name] for name in kept if name in found})
            for name in held.keys() - kept.keys():
                del held[name]
            yield wanted
        self._known = kept

    def _observer(self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> Observer:
        graph = ir.convenience.extract(self._model.graph, list(inputs), list(outputs))
        for value in graph.inputs:
            if value.type is None:
                array = self._held[0][value.name or ""]
                value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        functions = list(self._model.functions.values())
        part = ir.Model(graph, ir_version=self._model.ir_version, functions=functions)
        return Observer(part, [value.name or "" for value in outputs])

    def _before(self, values: Sequence[ir.Value]) -> dict[ir.Node, None]:
        """The nodes that make values of what is done."""
        found: dict[ir.Node, None] = {}
        stack = [node for value in values if (node := value.producer()) is not None]
        while stack:
            node = stack.pop()
            if node in found or node in self._done:
                continue
            found[node] = None
            stack += [maker for value in values_read(node) if (maker := value.producer()) is not None]
        return found

    def _can_be_held(self, node: ir.Node) -> bool:
        if node not in self._depends or node.op_type == "DequantizeLinear":
            return False
        kinds = [value.type for value in node.outputs if value.name]
        return all(kind is None or (isinstance(kind, ir.TensorType) and kind.dtype in _HELD) for kind in kinds)


def _behind(graph: ir.Graph, inputs: Sequence[ir.Value]) -> set[ir.Node]:
    """The nodes that depend on inputs."""
    known, found = set(inputs), set[ir.Node]()
    for node in graph:
        if any(value in known for value in values_read(node)):
            found.add(node)
            known.update(node.outputs)
    return found
