"""Moments of what products and convolutions read, summed over batches on two paths.

Every eighth row is kept apart, to judge by. Of a Conv some patches of each batch are drawn, see `patches`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..graph.constants import constant_of, is_constant
from ..graph.rewriting import required
from ..quantization.blas import pool
from ..quantization.input_moments import InputMoments, Matrices, draw_towards_diagonal
from .patches import COUNTED, draw, inputs_of_output, rows_of

Floats = npt.NDArray[np.float32]

_MOST_INPUTS = 16384
"""A matrix of moments beyond takes more than 1 GB."""
_APART = 8
"""One row in so many is kept apart."""
_COUNTED_ROWS = 2
"""As how many a row of a product counts, see `draw_towards_diagonal`. GPTQ with too few rows fits what they have in
common by chance: on other rows of a language model its error was -15.0 dB with 4,864 inputs and 6,144 rows (-14.7 dB by
a search for scales alone), and -16.6 dB with moments drawn so; with 896 inputs -21.4 and -21.5 dB, and of 1,536 rows
-19.3 and -20.6 dB."""
_MOST_TRUST = 0.75
"""However many rows there are, for what they have in common others need not. The embeddings of an encoder with 3 bits,
rounded by long documents: of others of the kind 5.9 % of the cosine are lost with all trust and 6.1 % with 0.7; of
short lines about something else 12.9 % and 10.2 %, and 10.8 % by a search for scales alone."""
_PANEL = 512
"""Columns of a matrix of moments that one thread sums at a time."""


def can_be_observed(node: ir.Node) -> bool:
    """Whether a node's outputs read rows of its first input, which data changes, and not too many numbers each."""
    return (
        node.op_type in ("MatMul", "Gemm", "Conv")
        and constant_of(required(node.inputs[1])) is not None
        and not is_constant(required(node.inputs[0]))
        and inputs_of_output(node) <= _MOST_INPUTS
    )


def rows_read(node: ir.Node, x: npt.NDArray[Any], mask: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    """What the outputs of a product read of x, [n, K], but for padding.

    Args:
        node: A MatMul or Gemm.
        x: Its first input.
        mask: [batch, tokens] of the model's inputs, 0 where a token is padding; None where there is none.
    """
    rows = rows_of(node, x)
    if mask is not None and x.shape[:-1] in (mask.shape, (mask.size,)) and node.op_type == "MatMul":
        rows = rows[mask.reshape(-1) != 0]
    return rows


class MomentSums:
    """Sums over what a node reads in the float model and on the path of rounded weights.

    Args:
        node: A MatMul, Gemm or Conv of a constant weight.
        cross: Whether the moments across both are wanted of the rows to round by, too.
    """

    def __init__(self, node: ir.Node, *, cross: bool) -> None:
        self._node, self._cross = node, cross
        self._generator = np.random.default_rng(0)
        self._learned, self._apart = Sums(), Sums(whole=True)
        self._seen = 0
        self._finite = True

    def add(self, here: npt.NDArray[Any], rounded: npt.NDArray[Any], mask: npt.NDArray[Any] | None = None) -> None:
        """See a batch.

        Args:
            here: The node's first input on the float path.
            rounded: On the other, which may be the same array.
            mask: [batch, tokens] of the model's inputs, 0 where a token is padding, whose rows do not count.
        """
        state = self._generator.bit_generator.state
        rows = self._rows(rounded, mask)
        others = rows
        if here is not rounded:
            self._generator.bit_generator.state = state  # the same patches
            others = self._rows(here, mask)
        self._finite = self._finite and bool(np.isfinite(rows).all() and np.isfinite(others).all())
        if not self._finite:
            return
        apart = (np.arange(rows.shape[1]) + self._seen) % _APART == _APART - 1
        self._seen += rows.shape[1]
        for sums, chosen, both in ((self._learned, ~apart, self._cross), (self._apart, apart, True)):
            sums.add(rows[:, chosen], others[:, chosen] if both and others is not rows else None)

    def _rows(self, x: npt.NDArray[Any], mask: npt.NDArray[Any] | None) -> Floats:
        """[G, n, K]."""
        if self._node.op_type == "Conv":
            return draw(self._node, x, self._generator).astype(np.float32)
        return np.ascontiguousarray(rows_read(self._node, x, mask), np.float32)[None]

    def moments(self) -> tuple[InputMoments, InputMoments] | None:
        """To round by, and to judge by; None of too few rows, or of some that are not finite."""
        if not (self._finite and self._learned.count and self._apart.count):
            return None
        learned, apart = self._learned.mean(), self._apart.mean()
        if not (np.isfinite(learned.second).all() and np.isfinite(apart.second).all()):
            return None  # squares overflow
        conv = self._node.op_type == "Conv"
        trusted = self._learned.trusted if conv else _COUNTED_ROWS * learned.count
        for matrices in (learned.second, learned.cross):
            if matrices is not None:
                draw_towards_diagonal(matrices, trusted, _MOST_TRUST)
        return learned, apart


class Sums:
    """Of x~ x~', and where the paths differ of x~ x' and, for the whole cost, of x x'.

    Args:
        dtype: Of the sums.
        whole: Whether the whole cost is wanted.
        centred: About the mean, of one path. Rows are counted from the mean of the first: what is left to subtract in
            the end is then small.

    Attributes:
        count: Rows seen.
        trusted: Patches of a Conv that count, which is so for `COUNTED` of each batch.
    """

    def __init__(self, dtype: npt.DTypeLike = np.float32, *, whole: bool = False, centred: bool = False) -> None:
        self.count = self.trusted = 0
        self._dtype, self._whole, self._centred = np.dtype(dtype), whole, centred
        self._second: Matrices | None = None
        self._cross: Matrices | None = None
        self._float_second: Matrices | None = None
        self._origin = self._first = np.zeros((1, 1), self._dtype)

    def add(self, rows: Matrices, others: Matrices | None = None) -> None:
        """Rows [G, n, K] on the path of rounded weights, and those of the float model where they are not the same."""
        if not rows.shape[1]:
            return
        shape = (len(rows), rows.shape[2], rows.shape[2])
        if self._second is None:
            self._second = np.zeros(shape, self._dtype)
            self._origin = rows.mean(axis=1) if self._centred else self._origin
        if self._centred:
            rows = rows - self._origin[:, None]
            self._first = self._first + rows.sum(axis=1)
        if others is not None and self._cross is None:
            self._cross = _whole(self._second)
            self._float_second = self._second.copy() if self._whole else None
        given = rows if others is None else others
        if self._cross is not None:
            _add_products(self._cross, rows, given, symmetric=False)
        if self._float_second is not None:
            _add_products(self._float_second, given, given, symmetric=True)
        _add_products(self._second, rows, rows, symmetric=True)
        self.count += rows.shape[1]
        self.trusted += min(COUNTED, rows.shape[1])

    def mean(self) -> InputMoments:
        """Moments of what was seen; the sums are used up."""
        count = self._dtype.type(self.count)
        second: Matrices = _whole(required(self._second)) / count
        cross = None if self._cross is None else self._cross / count
        float_second = None if self._float_second is None else _whole(self._float_second) / count
        self._second = self._cross = self._float_second = None
        if not self._centred:
            return InputMoments(second, self.count, cross, float_second)
        mean = self._first / count
        second -= mean[:, :, None] * mean[:, None, :]
        return InputMoments(second, self.count, mean=self._origin + mean)


def _whole(panels: Matrices) -> Matrices:
    """Symmetric matrices of which the part below the panels of the diagonal was left out."""
    whole: Matrices = panels.copy()
    for begin in range(0, whole.shape[1], _PANEL):
        end = begin + _PANEL
        whole[:, end:, begin:end] = whole[:, begin:end, end:].transpose(0, 2, 1)
    return whole


def _add_products(total: Matrices, left: Matrices, right: Matrices, *, symmetric: bool) -> None:
    """Add left' right, of what is symmetric all panels down to the diagonal; whatever the number of threads."""

    def add(begin: int) -> None:
        end = min(begin + _PANEL, total.shape[2])
        rows = end if symmetric else total.shape[1]
        with np.errstate(over="ignore", invalid="ignore"):  # told when all is summed
            total[:, :rows, begin:end] += left[:, :, :rows].transpose(0, 2, 1) @ right[:, :, begin:end]

    with pool() as workers:
        list(workers.map(add, range(0, total.shape[2], _PANEL)))
