"""Tokens that left an encoder on the way, put back behind a later layer.

Drop-and-Restore (Kim and Cho, 2021, arXiv:2010.07003, section 3.3) gives them back as they were when they left. Later
layers would have changed them: of all-MiniLM-L6-v2 the last one makes tokens a few times smaller, and a mean over all
would be one of those that left. So what layers did to the tokens that stayed is done to them, too, as far as a straight
line tells, from each drop to the next:

    x, y = what a token was and became;   m(x), m(y) = their means over those that stayed
    y ~ m(y) + b (x - m(x)),   b = sum (x - m(x)) (y - m(y)) / sum (x - m(x))^2,

which is the least squares fit with one slope for all channels. The lines of all drops behind a token make one.
"""

from __future__ import annotations

import onnx_ir as ir

from ..graph.appending import Appender

_INT64, _BOOL, _FLOAT = ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.FLOAT
_LEAST = 1e-12
"""Of sums of squares: of one token the slope is 0."""
Line = tuple[ir.Value, ir.Value]
"""Slope [batch, 1, 1] and summand [batch, 1, H]."""


class LeftTokens:
    """What left a chain of layers so far, while nodes of its model are appended."""

    def __init__(self, write: Appender, x: ir.Value) -> None:
        """Begin with all tokens, [batch, tokens, H]."""
        self._write, self._shape = write, x.shape
        length = write.size(x, 1)
        sizes = write.op("Concat", write.size(x, 0), length, axis=0)
        self._row = write.op("Expand", write.range(length), sizes)  # of each among all parts, one behind the other
        self._size = write.ints(0)
        self._parts: list[ir.Value] = []
        self._begins: list[ir.Value] = []  # of the parts behind the first
        self._lines: list[Line] = []  # from each part to the one behind it
        self._stayed: ir.Value | None = None

    def __bool__(self) -> bool:
        """Whether some left."""
        return bool(self._parts)

    def leave(self, y: ir.Value, x: ir.Value, place: ir.Value, inside: ir.Value, kept: ir.Value) -> None:
        """Some leave.

        Args:
            y: What the layer made, [batch, tokens, H].
            x: What goes on, [batch, fewer, H].
            place: int64 [batch, fewer], where each of it was in the beginning.
            inside: bool [batch or 1, fewer], which of it count: others left, too.
            kept: int64 [batch or 1, 1], how many.
        """
        write = self._write
        if self._stayed is not None:
            self._lines.append(self._line(y))
        begin = write.op("Add", self._size, write.size(y, 1))
        before = write.op("GatherElements", self._row, place, axis=1)
        newest = write.op("Add", write.range(write.size(x, 1)), begin)
        newest = write.op("Where", inside, newest, before, dtype=_INT64)
        self._row = write.op("ScatterElements", self._row, place, newest, axis=1)
        self._size = begin
        self._parts.append(y)
        self._begins.append(begin)
        self._weights = write.op("Unsqueeze", write.cast(inside, _FLOAT), write.ints(1))
        count = write.op("Max", write.cast(kept, _FLOAT), write.number(1))
        self._count = write.op("Unsqueeze", count, write.ints(1))
        self._stayed = x

    def whole(self, y: ir.Value) -> ir.Value:
        """All tokens behind a layer, of what it makes of those that stayed."""
        write = self._write
        batch, one = write.size(y, 0), write.ints(1)
        slope = write.op("Expand", write.number(1), write.op("Concat", batch, one, one, axis=0))
        summand = write.op("Expand", write.number(0), write.op("Concat", batch, one, write.size(y, 2), axis=0))
        slopes, summands = [slope], [summand]
        for b, a in reversed([*self._lines, self._line(y)]):
            summand = write.op("Add", write.op("Mul", slope, a), summand)
            slope = write.op("Mul", slope, b)
            slopes.insert(0, slope)
            summands.insert(0, summand)
        rows = write.op("Unsqueeze", self._row, write.ints(2))
        behind = write.op("GreaterOrEqual", rows, write.op("Concat", *self._begins, axis=0), dtype=_BOOL)
        line = write.op("ReduceSum", write.cast(behind, _INT64), write.ints(2), keepdims=1)
        last, b, a = (
            write.op("GatherND", write.op("Concat", *parts, axis=1), index, batch_dims=1)
            for parts, index in (([*self._parts, y], rows), (slopes, line), (summands, line))
        )
        return write.op("Add", write.op("Mul", last, b), a, shape=self._shape)

    def _line(self, y: ir.Value) -> Line:
        """From the newest part to what became of those that stayed, [batch, tokens, H]."""
        write, x = self._write, self._stayed
        assert x is not None
        before, after = self._mean(x), self._mean(y)
        dx = write.op("Mul", write.op("Sub", x, before), write.op("Transpose", self._weights, perm=[0, 2, 1]))
        dy = write.op("Sub", y, after)
        both, squares = (
            write.op("ReduceSum", write.op("Mul", dx, other), write.ints(1, 2), keepdims=1) for other in (dy, dx)
        )
        b = write.op("Div", both, write.op("Max", squares, write.number(_LEAST)))
        return b, write.op("Sub", after, write.op("Mul", b, before))

    def _mean(self, x: ir.Value) -> ir.Value:
        """Over those that stayed, [batch, 1, H]."""
        return self._write.op("Div", self._write.op("MatMul", self._weights, x), self._count)
