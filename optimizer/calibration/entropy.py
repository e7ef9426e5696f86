"""The range whose codes tell most about the values: S. Migacz, "8-bit inference with TensorRT", GTC 2017.

For a threshold T the range is what was seen within [-T, T]. P is the histogram over it, with what lies beyond added to
the outermost bins; Q is the histogram over it as the codes show it: what falls into a level is spread evenly over the
level's bins that hold something. The T with the least divergence

    KL(P | Q) = sum of P log(P / Q)

is taken. Thresholds end at bins that hold something, so that Q is zero nowhere where P is not. Exact zeros, of which a
Relu makes many, are left out: each code keeps them, and they would drown the rest.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .histogram import SIDE, Histogram

_CANDIDATES = 256

Range = tuple[float, float]


def least_divergence(histogram: Histogram, seen: Range, levels: int) -> Range:
    """The range of the least divergence.

    Args:
        histogram: Counts of the values.
        seen: The range that was seen, or a symmetric one around it.
        levels: How many codes there are.
    """
    counts = histogram.nonzero
    best, found = np.inf, seen
    for bins in _thresholds(counts, seen, levels):
        bound = bins * histogram.width
        low, high = max(seen[0], -bound), min(seen[1], bound)
        divergence = _divergence(counts, bins, (low, high), levels, histogram.width)
        if divergence <= best:  # of equals the widest
            best, found = divergence, (low, high)
    return found


def _thresholds(counts: npt.NDArray[np.int64], seen: Range, levels: int) -> list[int]:
    """Thresholds to try, in bins from zero: those that end at bins with values, at most some hundreds of them."""
    magnitudes = counts[SIDE:] + counts[:SIDE][::-1]
    ends = np.flatnonzero(magnitudes) + 1
    signs = 2 if seen[0] < 0 < seen[1] else 1
    ends = ends[ends * signs >= levels]  # with fewer bins each has a level of its own, and shows nothing
    step = max(1, -(-len(ends) // _CANDIDATES))
    return [int(end) for end in ends[::-1][::step][::-1]]


def _divergence(counts: npt.NDArray[np.int64], bins: int, bounds: Range, levels: int, width: float) -> float:
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    step = (high - low) / (levels - 1)
    begin, end = SIDE - bins, SIDE + bins
    inside = counts[begin:end].astype(np.float64)
    filled = np.flatnonzero(inside)
    if filled.size == 0:
        return float(np.inf)
    held = inside[filled]
    centres = (filled + begin - SIDE + 0.5) * width
    level = np.rint(centres / step).astype(np.int64)
    level -= level[0]
    spread = (np.bincount(level, held) / np.maximum(np.bincount(level), 1))[level]
    reference = held.copy()
    reference[0] += counts[:begin].sum()
    reference[-1] += counts[end:].sum()
    p, q = reference / reference.sum(), spread / spread.sum()
    return float(np.sum(p * np.log(p / q)))
