"""Scales per input of a product, and what rounding costs with them.

A product is the same with weights multiplied and inputs divided by a scale s_j per input, W x = (W diag(s)) (x / s),
where what makes x can divide. Rounding is not, and with inputs of moments H costs

    tr E H E',   E = Q(W diag(s)) diag(s)^-1 - W.

Q is the scheme's, with the scales of its blocks searched under the diagonal of the moments of x / s: scales of inputs
and of blocks are found together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from ..methods import Problem
from ..methods.method import importance_of
from ..quantized_weight import Floats, QuantizedWeight
from ..rtn import quantize_rtn

_FLOPS, _LEAST, _MOST = 4_000_000_000, 64, 256
"""Output channels of a part: so many that one look at what they cost takes as many operations, within bounds."""

_PIECE = 1 << 13
"""Output channels that are rounded and judged at once."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Weights that read the same inputs, and so have one scale per input.

    Attributes:
        problems: One for each weight, with the same moments, of one group of channels.
        largest: float32 [K], the largest magnitude that each input had.
    """

    problems: Sequence[Problem]
    largest: Floats

    def __post_init__(self) -> None:
        """Check that there is one scale per input to find.

        Raises:
            ValueError: There are several groups of channels, which have inputs of their own.
        """
        if any(len(problem.moments.second) > 1 for problem in self.problems):
            raise ValueError("inputs of several groups of channels")

    @property
    def parts(self) -> int:
        """Into how many parts of its output channels a group is taken apart, each of which costs little to judge."""
        channels = sum(len(problem.rows) for problem in self.problems)
        wanted = min(_MOST, max(_LEAST, _FLOPS // (2 * len(self.largest) ** 2)))
        return max(1, min(channels // wanted, *(len(problem.rows) for problem in self.problems)))

    def part(self, index: int) -> Group:
        """The group with one of its parts, which is spread evenly over its weights."""
        some = slice(index % self.parts, None, self.parts)
        problems = [dataclasses.replace(each, rows=np.ascontiguousarray(each.rows[some])) for each in self.problems]
        return dataclasses.replace(self, problems=problems)

    def cost(self, scales: Floats, *, apart: bool = False) -> float:
        """What rounding the weights costs with these scales, per row of data on average.

        Args:
            scales: float32 [K], positive.
            apart: Judge by the rows kept apart.
        """
        pieces = [piece for problem in self.problems for piece in _pieces(problem)]
        return sum(
            (piece.apart if apart else piece.moments).cost(in_place(piece, rounded(piece, scales), scales), piece.rows)
            for piece in pieces
        )


@dataclasses.dataclass(frozen=True)
class Transform:
    """A way to find scales.

    Attributes:
        name: In recipes and on the command line.
        find: float32 [K], positive, for a group; ones where no others that it tries cost less, of the whole group or
            of a part of it.
    """

    name: str
    find: Callable[[Group], Floats]


def cheapest(group: Group, candidates: Sequence[Floats]) -> Floats:
    """Of these scales and of none, the first of least cost, as a part of the group tells."""
    tried = [np.ones_like(group.largest), *candidates]
    return min(tried, key=group.part(0).cost)


def rounded(problem: Problem, scales: Floats) -> QuantizedWeight:
    """Q(W diag(s)), with the scales of blocks that cost least under the inputs that it then meets."""
    squares = problem.moments.diagonal[0] / np.square(scales)
    return quantize_rtn(
        np.ascontiguousarray(problem.rows * scales), problem.scheme, True, convolution=problem.convolution,
        importance=importance_of(squares, 1),
    )  # fmt: skip


def in_place(problem: Problem, found: QuantizedWeight, scales: Floats) -> Floats:
    """Q(W diag(s)) diag(s)^-1, what stands in the place of W, [N, K]."""
    numbers = found.rows()
    numbers /= scales
    return numbers


def centred(logarithms: Floats) -> Floats:
    """Scales of these logarithms but for a common factor: with a geometric mean of 1."""
    scales: Floats = np.exp(logarithms - logarithms.mean(dtype=np.float64)).astype(np.float32)
    return scales


def _pieces(problem: Problem) -> list[Problem]:
    """A problem some output channels at a time, so that few numbers are in memory; whole where all share one scale."""
    scheme, channels = problem.scheme, len(problem.rows)
    step = _PIECE if scheme.per_channel or scheme.block_size else max(1, channels)
    return [dataclasses.replace(problem, rows=problem.rows[at : at + step]) for at in range(0, channels, step)]
