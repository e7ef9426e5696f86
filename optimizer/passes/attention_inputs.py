"""What ONNX Runtime's attention of encoders reads beside queries, keys and values: masks of padding, and biases."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from ..graph.appending import Appender
from ..graph.padding_mask import PaddingMask
from ..graph.rewriting import add_array, required
from ..graph.score_mask import LOWEST, Term
from ..graph.score_terms import Bias, Terms
from ..graph.sharing import made_behind


class AttentionInputs:
    """Writes each once for all layers that have the same; the graph is to be put in order when all are there.

    Args:
        graph: The main graph.
        terms: What is known of what is added to scores.
        write: For nodes that several attentions share.
    """

    def __init__(self, graph: ir.Graph, terms: Terms, write: Appender) -> None:
        self._graph, self._terms, self._write = graph, terms, write
        self._made: dict[tuple[object, ...], ir.Value] = {}

    def padding(self, mask: PaddingMask) -> ir.Value:
        """int32 [batch, keys], 1 where a key counts."""
        return self._once(("padding", mask.root, mask.counts), lambda: self._integers(mask))

    def bias(self, terms: Sequence[Bias], x: ir.Value, memory: ir.Value) -> ir.Value:
        """float32 [batch or 1, heads or 1, queries, keys], the sum of terms.

        Args:
            terms: One at least.
            x: [batch, queries, ...].
            memory: [batch, keys, ...].
        """
        first, *others = [self._term(term, x) for term in terms]
        for other in others:
            first = self._sum(first, other)
        return first if any(self._terms.is_whole(term, x) for term in terms) else self._widened(first, x, memory)

    def _once(self, key: tuple[object, ...], make: Callable[[], ir.Value]) -> ir.Value:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _integers(self, mask: PaddingMask) -> ir.Value:
        value = mask.root
        if not mask.counts:
            if value.dtype in (ir.DataType.INT64, ir.DataType.INT32):
                zero = add_array(self._graph, f"{value.name}_zero", np.zeros((), value.dtype.numpy()))
                value = self._behind("Equal", value, zero)
            else:
                value = self._behind("Not", value)
        if mask.root.shape is not None and len(mask.root.shape) == 4:
            axes = add_array(self._graph, f"{mask.root.name}_axes", np.array([1, 2], np.int64))
            value = self._behind("Squeeze", value, axes)
        value = self._behind("Cast", value, to=int(ir.DataType.INT32))
        value.type = ir.TensorType(ir.DataType.INT32)
        if mask.root.shape is not None:
            value.shape = ir.Shape([mask.root.shape[0], mask.root.shape[-1]])
        return value

    def _behind(self, op_type: str, value: ir.Value, *more: ir.Value, **attributes: int) -> ir.Value:
        name = f"{value.name}_{op_type.lower()}"
        return made_behind(value, self._graph, op_type, [value, *more], name, **attributes)

    def _term(self, term: Bias, x: ir.Value) -> ir.Value:
        mask = term.mask
        if term.repeats:
            return self._once(("repeated", mask.root, x), lambda: self._repeated(mask.root, x))
        if not mask.is_choice and not term.spares_nan:
            return mask.root
        return self._once((mask, term.spares_nan), lambda: self._finite(mask))

    def _finite(self, mask: Term) -> ir.Value:
        """What is added, so that the softmax of a row that sees nothing is no NaN."""
        if not mask.is_choice:
            return self._write.op("Max", mask.root, self._write.number(LOWEST), shape=mask.root.shape)
        pair = [self._write.number(number) for number in (mask.kept, max(mask.fill, LOWEST))]
        yes, no = pair if mask.counts else pair[::-1]
        return self._write.op("Where", mask.root, yes, no, dtype=ir.DataType.FLOAT, shape=mask.root.shape)

    def _sum(self, one: ir.Value, other: ir.Value) -> ir.Value:
        return self._once(("sum", one, other), lambda: self._write.op("Add", one, other))

    def _repeated(self, root: ir.Value, x: ir.Value) -> ir.Value:
        """[batch, heads or 1, queries, keys] of [1, windows, heads or 1, queries, keys], again and again."""
        _, *sizes = required(root.shape).numpy()
        windows = self._write.op("Reshape", root, self._write.ints(*sizes))
        images = self._write.op("Div", self._size(x, 0), self._write.ints(sizes[0]))
        return self._write.op("Tile", windows, self._write.op("Concat", images, self._write.ints(1, 1, 1), axis=0))

    def _widened(self, bias: ir.Value, x: ir.Value, memory: ir.Value) -> ir.Value:
        """With a row a query and a column a key: ONNX Runtime's attention repeats neither."""

        def make() -> ir.Value:
            sizes = self._write.op("Concat", self._write.ints(1, 1), self._size(x, 1), self._size(memory, 1), axis=0)
            return self._write.op("Expand", bias, sizes)

        return self._once(("widened", bias, _length(x), _length(memory)), make)

    def _size(self, x: ir.Value, axis: int) -> ir.Value:
        sizes = self._write.op("Shape", x, dtype=ir.DataType.INT64)
        return self._write.op("Slice", sizes, self._write.ints(axis), self._write.ints(axis + 1))


def _length(x: ir.Value) -> object:
    """What tells how many rows: a number or its name, else the value itself."""
    length = x.shape[1] if x.shape is not None and len(x.shape) > 1 else None
    told = length.value if isinstance(length, ir.SymbolicDim) else length
    return x if told is None else told
