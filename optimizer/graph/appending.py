"""Many new nodes of one rewrite, written as if they were calls; the graph is put in order when all are there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from .rewriting import SharedArrays, set_names


class Appender:
    """Appends standard operators to a graph.

    Attributes:
        made: The nodes.
    """

    def __init__(self, graph: ir.Graph, scope: str) -> None:
        """Names begin with the scope."""
        self._graph, self._scope = graph, scope
        self._arrays = SharedArrays(graph)
        self.made: list[ir.Node] = []

    def op(
        self, op_type: str, *inputs: ir.Value, dtype: ir.DataType | None = None, index: int = 0, outputs: int = 1,
        shape: ir.Shape | None = None, **attributes: int | Sequence[int],
    ) -> ir.Value:  # fmt: skip
        """An output of a new node.

        Args:
            op_type: The operator.
            inputs: What it reads.
            dtype: Of the output; by default that of the first input.
            index: Which output.
            outputs: How many there are.
            shape: Of the output, where it is known.
            attributes: Of the node.
        """
        node = ir.node(op_type, list(inputs), attributes=attributes, num_outputs=outputs)
        name = f"{self._scope}{op_type}"
        set_names(node, self._graph, name, *(f"{name}_out{i or ''}" for i in range(outputs)))
        y = node.outputs[index]
        known = dtype or inputs[0].dtype
        y.type, y.shape = ir.TensorType(known) if known is not None else None, shape
        self._graph.append(node)
        self.made.append(node)
        return y

    def cast(self, x: ir.Value, dtype: ir.DataType) -> ir.Value:
        """In another type."""
        return self.op("Cast", x, dtype=dtype, to=int(dtype))

    def ints(self, *numbers: int) -> ir.Value:
        """A constant int64 list."""
        return self._arrays.add(f"{self._scope}ints", np.array(numbers, np.int64))

    def number(self, number: float, dtype: type[np.generic] = np.float32) -> ir.Value:
        """A constant of no axes."""
        return self._arrays.add(f"{self._scope}number", np.array(number, dtype))

    def size(self, x: ir.Value, axis: int) -> ir.Value:
        """Length of an axis, int64 [1]."""
        return self.op("Shape", x, dtype=ir.DataType.INT64, start=axis, end=axis + 1)

    def range(self, count: ir.Value) -> ir.Value:
        """int64 [count], from 0 on, of an int64 [1]."""
        zero, one = (self.number(number, np.int64) for number in (0, 1))
        return self.op("Range", zero, self.op("Squeeze", count, self.ints(0)), one, dtype=ir.DataType.INT64)
