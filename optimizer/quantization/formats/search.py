"""The scale of each block with which rounding costs least.

With e = s round(x / s) - x the cost of a block is one of

    product       sum_k h_k e_k^2,  h_k = 1 + x_k^2 / (c mean(x^2))
    convolution   sum_k e_k^2
    by data       sum_k h_k e_k^2,  h_k what input k was seen to be worth

Plain squares would cut off the largest weights for the good of the many small ones, but products need the large ones
most, which meet their large activations; c is `LEAST_COUNT`, and why h is the weight's own square says `quantize_block`
in `custom_ops.reference`. The inputs of a convolution have scales of their own, channel by channel, so that a large
weight says nothing about what it meets; what the sum of its errors costs is left to `cancel`.

Candidates are multiples of the scale that puts the largest magnitude on the largest number of the format; the best of
them is followed by one step of Lloyd's method: the scale of least cost for the numbers q that x was rounded to,
s = sum(h x q) / sum(h q q). Floating-point formats gain by multiples above 1, too: what they round off goes up and down
within a power of two.

Of powers of two there are few: that of the rule of the Microscaling formats (OCP MX specification 1.0, section 6.3),
2^(floor(log2 max |x|) - e_max), with which a part of the largest magnitudes may be cut off, and its neighbours.

Blocks are divided by a power of two near their magnitude first, so that squares neither overflow nor vanish.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
from onnxpress.custom_ops import _kernels
from onnxpress.custom_ops.reference import LEAST_COUNT

from .base import Floats, Format
from .scales import ScaleType

_MULTIPLES = (1.1, 1.05, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
_PIECE = 1 << 18  # numbers rounded at a time: some arrays of them stay in the caches


@dataclasses.dataclass(frozen=True)
class FoundScales:
    """Scales [blocks], and of each block the squared error, the cost, and the cost of the first candidate."""

    scales: Floats
    error: npt.NDArray[np.float64]
    cost: npt.NDArray[np.float64]
    baseline: npt.NDArray[np.float64]


def find_scales(
    x: Floats,
    weights: Format,
    scale_type: ScaleType,
    *,
    search: bool = True,
    convolution: bool = False,
    counts: Floats | None = None,
) -> FoundScales:
    """A scale for each block.

    Args:
        x: Finite, [blocks, size].
        weights: The format to round to.
        scale_type: What scales can be.
        search: Try candidates; otherwise the first of them.
        convolution: Whether blocks are of a convolution's weight, not of a product's.
        counts: [blocks, size], what squared errors count where data tells it; not negative.

    Returns:
        Scales and what they cost. A block of zeros has the scale 1.
    """
    peak = np.abs(x).max(axis=1)
    power = _power(np.clip(np.frexp(peak)[1], -125, 127))
    blocks = _Blocks(x / power[:, None], power, weights, scale_type, convolution, counts)
    first = _first(peak / power, weights, scale_type)
    best = blocks.judge(first)
    plain = best.cost
    for multiple in blocks.multiples() if search else ():
        best = best.or_better(blocks.judge(first * np.float32(multiple)))
    if search and not scale_type.power_of_two:
        best = best.or_better(blocks.judge(best.refined))
    scales = np.where(peak > 0, best.scale * power, np.float32(1)).astype(np.float32)
    square = np.square(power.astype(np.float64))
    error, cost, baseline = (each.astype(np.float64) * square for each in (best.error, best.cost, plain))
    return FoundScales(scales, error, cost, baseline)


def _first(peak: Floats, weights: Format, scale_type: ScaleType) -> Floats:
    if scale_type.power_of_two:
        return _power(np.frexp(peak)[1] - 1 - weights.exponent)
    first: Floats = peak / np.float32(weights.max)
    return first


def _power(exponent: npt.NDArray[np.integer]) -> Floats:
    power: Floats = np.ldexp(np.float32(1), exponent).astype(np.float32)
    return power


@dataclasses.dataclass(frozen=True)
class _Judged:
    """Scales [blocks] that there are, what they cost, and the scales of least cost for the codes that they give."""

    scale: Floats
    error: Floats
    cost: Floats
    refined: Floats

    def or_better(self, other: _Judged) -> _Judged:
        """Of each block the one that costs less."""
        better = other.cost < self.cost
        return _Judged(
            scale=np.where(better, other.scale, self.scale),
            error=np.where(better, other.error, self.error),
            cost=np.where(better, other.cost, self.cost),
            refined=np.where(better, other.refined, self.refined),
        )


class _Blocks:
    """Blocks divided by `power`, as all scales here are."""

    def __init__(
        self, x: Floats, power: Floats, weights: Format, scale_type: ScaleType, convolution: bool,
        counts: Floats | None,
    ) -> None:  # fmt: skip
        self._x = x
        self._power = power
        self._weights = weights
        self._scale_type = scale_type
        self._counts = counts
        squares = np.einsum("bk,bk->b", x, x)
        grows = (squares > 0) & (not convolution)
        self._growth = np.divide(x.shape[1] / LEAST_COUNT, squares, out=np.zeros_like(squares), where=grows)

    def multiples(self) -> tuple[float, ...]:
        """Of the first candidate."""
        return (2.0, 0.5) if self._scale_type.power_of_two else _MULTIPLES

    def judge(self, scale: Floats) -> _Judged:
        """The nearest scales that there are."""
        scale = self._scale_type.round(scale * self._power.astype(np.float64), self._weights) / self._power
        if self._weights.has_kernel and self._counts is None:
            sums, _ = _kernels.rounding_errors(self._x, scale, self._growth, self._weights.name)
        else:
            sums = self._errors(scale)
        error, cost, above, below = sums.T
        refined = np.divide(above, below, out=scale.copy(), where=(above > 0) & (below > 0))
        return _Judged(scale, error, cost, refined)

    def _errors(self, scale: Floats) -> Floats:
        """What `_kernels.rounding_errors` gives, of any format and counts."""
        sums = np.zeros((len(scale), 4), np.float32)
        step = max(1, _PIECE // len(scale))
        for begin in range(0, self._x.shape[1], step):
            x = self._x[:, begin : begin + step]
            with np.errstate(over="ignore"):  # what is infinite is held to the largest
                q = self._weights.round(x / scale[:, None])
            difference = q * scale[:, None]
            difference -= x
            if self._counts is None:
                counted = x * x * self._growth[:, None] + np.float32(1)
            else:
                counted = self._counts[:, begin : begin + step]
            weighted = counted * q
            sums += np.stack([
                np.einsum("bk,bk->b", difference, difference),
                np.einsum("bk,bk,bk->b", counted, difference, difference),
                np.einsum("bk,bk->b", weighted, x),
                np.einsum("bk,bk->b", weighted, q),
            ], axis=1)  # fmt: skip
        return sums
