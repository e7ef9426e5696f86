"""A histogram that needs no range beforehand and merges without loss.

It has 2 B bins over [-2^k, 2^k), B = 4096, where k is the least exponent that holds every value seen. A value x lies in
bin floor(x B / 2^k), and since the scale is a power of two, and

    floor(floor(x B / 2^k) / 2) = floor(x B / 2^(k+1)),

adding neighbours in pairs gives exactly the bins of the next larger range. So one pass over the data is enough, and
parts of it that were counted apart, in whatever order, add up to the same counts. At least a quarter of the bins, or
half of one sign's, lie below the largest magnitude: eight for each of 256 levels.

Exact zeros are counted apart too: a Relu makes many, and every code holds zero exactly.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

SIDE = 4096
"""Bins of each sign."""
_BITS = 12
_PIECE = 1 << 16  # values counted at a time: what is made of them stays in a core's cache
LEAST_EXPONENT, MOST_EXPONENT = -100, 128  # so that the scale of a bin is a normal float32

Counts = npt.NDArray[np.int64]


@dataclasses.dataclass
class Histogram:
    """Counts of values by size.

    Attributes:
        counts: int64 [2 * SIDE], from the most negative bin to the most positive.
        exponent: The bins end at plus and minus 2 to this power.
        zeros: How many of the values are zero.
    """

    counts: Counts = dataclasses.field(default_factory=lambda: np.zeros(2 * SIDE, np.int64))
    exponent: int = LEAST_EXPONENT
    zeros: int = 0

    @property
    def width(self) -> float:
        """Of a bin."""
        return math.ldexp(1.0, self.exponent - _BITS)

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """float64 [2 * SIDE + 1]: where the bins begin and end."""
        edges: npt.NDArray[np.float64] = np.arange(-SIDE, SIDE + 1, dtype=np.float64) * self.width
        return edges

    @property
    def nonzero(self) -> Counts:
        """The counts without exact zeros."""
        counts: Counts = self.counts.copy()
        counts[SIDE] -= self.zeros
        return counts

    def update(self, values: npt.NDArray[np.float32], largest: float) -> None:
        """Count finite values.

        Args:
            values: float32 of any shape.
            largest: Their largest magnitude.
        """
        self._widen(exponent_of(largest))
        scale = np.float32(math.ldexp(1.0, _BITS - self.exponent))
        flat = values.reshape(-1)
        scaled, bins = np.empty(_PIECE, np.float32), np.empty(_PIECE, np.int64)
        for begin in range(0, flat.size, _PIECE):
            piece = flat[begin : begin + _PIECE]
            floats, places = scaled[: piece.size], bins[: piece.size]
            np.multiply(piece, scale, out=floats)
            np.floor(floats, out=floats)  # a cast alone would round towards zero
            np.copyto(places, floats, casting="unsafe")
            places += SIDE
            counts = np.bincount(places, minlength=2 * SIDE)
            # Beside large values, tiny negative ones are scaled to -0, and land in the bin above theirs.
            lost = int(np.count_nonzero(piece < 0)) - int(counts[:SIDE].sum())
            counts[SIDE] -= lost
            counts[SIDE - 1] += lost
            self.counts += counts
        self.zeros += flat.size - int(np.count_nonzero(flat))

    def merge(self, other: Histogram) -> Histogram:
        """What counting the values of both gives."""
        merged = Histogram(self.counts.copy(), self.exponent, self.zeros + other.zeros)
        merged._widen(other.exponent)
        second = Histogram(other.counts.copy(), other.exponent)
        second._widen(merged.exponent)
        merged.counts += second.counts
        return merged

    def _widen(self, exponent: int) -> None:
        """Bins for magnitudes below 2^exponent."""
        if exponent <= self.exponent:
            return
        # Nothing counted, nothing to move; and after some halvings all lies in the two middle bins.
        halvings = min(exponent - self.exponent, _BITS + 1) if self.counts.any() else 0
        counts = self.counts
        for _ in range(halvings):
            quarter = counts.reshape(-1, 2).sum(axis=1)
            counts = np.zeros_like(counts)
            counts[SIDE // 2 : SIDE // 2 + SIDE] = quarter
        self.counts, self.exponent = counts, exponent


def exponent_of(largest: float) -> int:
    """The least k with largest < 2^k, within what bins can have."""
    return min(max(math.frexp(largest)[1], LEAST_EXPONENT), MOST_EXPONENT) if largest > 0 else LEAST_EXPONENT


def occupied(histogram: Histogram) -> tuple[npt.NDArray[np.float64], Counts]:
    """Edges and counts of the bins from the first that holds something to the last, exact zeros left out."""
    counts = histogram.nonzero
    filled = np.flatnonzero(counts)
    begin, end = (int(filled[0]), int(filled[-1]) + 1) if filled.size else (SIDE, SIDE + 1)
    return histogram.edges[begin : end + 1], counts[begin:end]
