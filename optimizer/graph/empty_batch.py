"""A batch of none for nodes that cannot take one: they compute a row of zeros, which is dropped behind them.

B = 0:  [0, ...] -> Pad -> [1, ...] -> node -> [1, ...] -> Slice -> [0, ...]
B > 0:  Pad and Slice copy
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from .rewriting import SharedArrays, insert_before, required
from .sharing import made_behind

_INT64 = ir.DataType.INT64


class EmptyBatch:
    """Writes what is ahead of and behind such nodes; for opset 11 and newer.

    The batch is given as a tensor whose first axis it is. Nodes of one graph that give the same tensor share what is
    computed of it.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._arrays = SharedArrays(graph)
        self._made: dict[tuple[int, ir.Value, str], ir.Value] = {}

    def filled(self, node: ir.Node, x: ir.Value, batch: ir.Value, axes: int) -> ir.Value:
        """An input of a node, [batch, ...] of so many axes, with one row at least."""
        if is_never_empty(batch):
            return x
        size = self._size(node, batch)
        is_empty = self._behind(node, size, "Equal", [size, self._ints(0)], "is_empty")
        missing = self._behind(node, is_empty, "Cast", [is_empty], "missing", to=int(_INT64))
        before_first = self._ints(1, *[0] * (2 * axes - 1))
        pads = self._behind(node, missing, "Mul", [missing, before_first], f"pads{axes}")
        if x is batch:
            filled = self._behind(node, pads, "Pad", [x, pads], "filled")
            filled.type = x.type
            return filled
        filled = insert_before(node, "Pad", [x, pads], x, suffix="_filled")
        _forget_batch(filled)
        return filled

    def emptied(self, node: ir.Node, y: ir.Value, batch: ir.Value) -> ir.Value:
        """What a node made, without that row; nodes are put before the given one."""
        if is_never_empty(batch):
            return y
        first, size = self._ints(0), self._size(node, batch)
        emptied = insert_before(node, "Slice", [y, first, size, first], y, suffix="_of_batch")
        _forget_batch(y)
        return emptied

    def _size(self, node: ir.Node, batch: ir.Value) -> ir.Value:
        """int64 [1]."""
        shape = self._behind(node, batch, "Shape", [batch], "shape")
        return self._behind(node, shape, "Slice", [shape, self._ints(0), self._ints(1)], "rows")

    def _ints(self, *numbers: int) -> ir.Value:
        return self._arrays.add("batch_ints", np.array(numbers, np.int64))

    def _behind(
        self, node: ir.Node, x: ir.Value, op_type: str, inputs: Sequence[ir.Value], what: str, **attributes: int
    ) -> ir.Value:  # fmt: skip
        """A new node right behind x in the graph of another, made once for all that want the same of x."""
        graph = required(node.graph)
        assert isinstance(graph, ir.Graph)
        key = (id(graph), x, what)
        if key not in self._made:
            self._made[key] = made_behind(x, graph, op_type, inputs, f"batch_{what}", **attributes)
        return self._made[key]


def _forget_batch(value: ir.Value) -> None:
    """Its first axis is called like no other: ONNX Runtime puts tensors of equal names into the same memory."""
    if value.shape is not None:
        value.shape = ir.Shape([None, *value.shape[1:]])


def is_never_empty(batch: ir.Value) -> bool:
    """Whether the model says that there is a row."""
    size = batch.shape[0] if batch.shape is not None and len(batch.shape) else None
    return isinstance(size, int) and size > 0
