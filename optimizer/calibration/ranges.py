"""From what was seen of a tensor to the range that its codes span.

Every method clips the ends of the histogram where that pays; what is clipped becomes the end of the range. A range is
judged as it will be used: L levels a step s apart, one of which is zero,

    s = (high - low) / (L - 1),  z = rint(-low / s),  q(x) = s (clip(rint(x / s) + z, 0, L - 1) - z).

"percentile": the share p of the values that lies in the middle, (1 - p) / 2 being cut at each end; of magnitudes where
the range is symmetric.

"mse": the least mean of (x - q(x))^2, with values spread evenly over their bins. With t = x / s, c = clip(t) and
r = c - rint(c), the integral of the squared error from zero, in t, is

    s^3 (rint(c) / 12 + r^3 / 3 + (t - c)^3 / 3),

whose differences over the edges of the bins, times counts, give the sum at once; exact zeros add nothing. Low and
high are searched together first, then in turn.

"entropy": the least Kullback-Leibler divergence of the values from their codes (S. Migacz, "8-bit inference with
TensorRT", GTC 2017), see `entropy.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from .entropy import least_divergence
from .histogram import SIDE, Histogram, occupied
from .statistics import TensorStatistics

METHODS = ("minmax", "moving-average", "percentile", "entropy", "mse")
MOST_ABSMAX = 1e15
"""Magnitude up to which the scale of a tensor times that of a weight, and sums of both, stay well within float32."""
_SHRINK, _LEAST_SHARE, _REFINED = 0.8, 1 / 4096, 8
_ROUNDS = 3

Range = tuple[float, float]


def unusable(statistics: TensorStatistics, most: float = MOST_ABSMAX) -> str | None:
    """Why a tensor with magnitudes up to `most` cannot be rounded to codes; None where it can."""
    if not statistics.finite:
        return "it holds NaN or infinity"
    if statistics.count == 0:
        return "no value of it was seen"
    if statistics.absmax > most:
        return f"its values reach {statistics.absmax:.1e}, beyond what codes of 8 bits can scale"
    return None


def activation_range(
    statistics: TensorStatistics,
    method: str,
    *,
    percentile: float = 99.99,
    symmetric: bool = False,
    levels: int = 256,
) -> Range:
    """The range that codes of a tensor should span.

    Args:
        statistics: What was seen of it.
        method: "minmax", "moving-average", "percentile", "entropy" or "mse".
        percentile: Percent of the values within the range of "percentile".
        symmetric: Let the range be (-m, m).
        levels: How many codes there are.

    Returns:
        The range, finite and within what was seen: low <= high, or -m and m with m no larger than the largest
        magnitude. It need not hold zero. (0, 0) where no value was seen.

    Raises:
        UsageError: The method is unknown, a number makes no sense, or the method needs a histogram that was not kept.
    """
    if method not in METHODS:
        raise UsageError(f'range method "{method}": there are {", ".join(METHODS)}')
    if not 0 < percentile <= 100:
        raise UsageError(f"percentile is {percentile}, must be above 0 and up to 100")
    if not 2 <= levels <= 1 << 16:
        raise UsageError(f"levels is {levels}, must be from 2 to {1 << 16}")
    if statistics.count == 0:
        return 0.0, 0.0
    seen = (-statistics.absmax, statistics.absmax) if symmetric else (statistics.low, statistics.high)
    if method == "minmax" or seen[0] == seen[1]:
        return seen
    if method == "moving-average":
        low, high = statistics.moving_low, statistics.moving_high
        largest = max(abs(low), abs(high))
        return _within((-largest, largest) if symmetric else (low, high), seen)
    if statistics.histogram is None:
        raise UsageError(f'range method "{method}" needs a histogram, which the statistics were collected without')
    if method == "percentile":
        return _within(_percentile(statistics.histogram, percentile / 100, symmetric), seen)
    if method == "entropy":
        return _within(least_divergence(statistics.histogram, seen, levels), seen)
    return _within(_least_squares(statistics.histogram, seen, symmetric, levels), seen)


def _within(found: Range, seen: Range) -> Range:
    low, high = (min(max(bound, seen[0]), seen[1]) for bound in found)
    return low, high


def _percentile(histogram: Histogram, share: float, symmetric: bool) -> Range:
    # Exact zeros get a bin without width.
    edges, counts = histogram.edges[SIDE:], histogram.nonzero
    above, below, zeros = counts[SIDE:], counts[:SIDE], [histogram.zeros]
    if symmetric:
        largest = _quantile(np.concatenate([[0.0], edges]), np.concatenate([zeros, above + below[::-1]]), share)
        return -largest, largest
    edges, counts = np.concatenate([-edges[::-1], edges]), np.concatenate([below, zeros, above])
    cut = (1 - share) / 2
    return _quantile(edges, counts, cut), _quantile(edges, counts, 1 - cut)


def _quantile(edges: npt.NDArray[np.float64], counts: npt.NDArray[np.int64], share: float) -> float:
    """The value below which a share of the values lies, spread evenly over their bins."""
    below = np.concatenate([[0], np.cumsum(counts)])
    goal = share * float(below[-1])
    index = min(int(np.searchsorted(below, goal, side="right")), len(counts)) - 1
    inside = (goal - float(below[index])) / float(counts[index]) if counts[index] else 1.0
    return float(edges[index] + min(inside, 1.0) * (edges[index + 1] - edges[index]))


def _least_squares(histogram: Histogram, seen: Range, symmetric: bool, levels: int) -> Range:
    edges, counts = occupied(histogram)

    def error(low: float, high: float) -> float:
        return squared_error(edges, counts, (low, high), levels)

    both = _search(lambda share: error(seen[0] * share, seen[1] * share))
    found = low, high = seen[0] * both, seen[1] * both
    if symmetric:
        return found
    best = error(*found)
    for _ in range(_ROUNDS):
        if seen[1] > 0:
            high = seen[1] * _search(lambda share, low=low: error(low, seen[1] * share))  # type: ignore[misc]
        if seen[0] < 0:
            low = seen[0] * _search(lambda share, high=high: error(seen[0] * share, high))  # type: ignore[misc]
        if (now := error(low, high)) >= best:
            break
        best, found = now, (low, high)
    return found


def _search(error: Callable[[float], float]) -> float:
    """The share of a bound with the least error: coarsely first, then around the best."""
    steps = math.ceil(math.log(_LEAST_SHARE) / math.log(_SHRINK))
    coarse = min(range(steps), key=lambda step: error(math.pow(_SHRINK, step)))
    fine = [coarse + step / _REFINED for step in range(-_REFINED + 1, _REFINED)]
    return math.pow(_SHRINK, min((step for step in fine if step >= 0), key=lambda step: error(math.pow(_SHRINK, step))))


def squared_error(edges: npt.NDArray[np.float64], counts: npt.NDArray[np.int64], bounds: Range, levels: int) -> float:
    """The sum of squared errors of values in bins when rounded to the levels of a range.

    Args:
        edges: float64 [N + 1], where the bins begin and end.
        counts: int64 [N].
        bounds: The range; it is widened to hold zero.
        levels: How many codes there are.
    """
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    step = (high - low) / (levels - 1)
    if step <= 0:
        return math.inf
    zero = round(-low / step)
    scaled = edges / step
    clipped = np.clip(scaled, -zero, levels - 1 - zero)
    nearest = np.rint(clipped)
    integral = nearest / 12 + (_cube(clipped - nearest) + _cube(scaled - clipped)) / 3
    width = float(edges[1] - edges[0]) / step
    return float(counts @ np.diff(integral)) / width * step * step


def _cube(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return x * x * x  # a power of an array is many times slower
