"""The scale of each block with which rounding costs least.

    min over s of  sum_k h_k (x_k - s round(x_k / s))^2

with weights h, 1 by default. Candidates are multiples, from 1/2 to 2, of the scale that puts the largest magnitude on
the largest number of the format, each followed by one step of Lloyd's method: the least-squares scale for the numbers
q that x was rounded to, s = sum(h x q) / sum(h q q). Floating-point formats gain by scales above 1, too: what they
round off goes up and down within a power of two.

Of powers of two there are few: that of the rule of the Microscaling formats (OCP MX specification 1.0, section 6.3),
2^(floor(log2 max |x|) - e_max), with which a part of the largest magnitudes may be cut off, and its neighbours.

Blocks are divided by a power of two near their magnitude first, so that squares neither overflow nor vanish.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from onnxpress.custom_ops import _kernels

from .base import Floats, Format
from .scales import ScaleType

_MULTIPLES = tuple(2.0 ** (step / 12) for step in range(-12, 13))
_PIECE = 1 << 18  # numbers rounded at a time: some arrays of them stay in the caches


def find_scales(
    x: Floats, weights: Format, scale_type: ScaleType, *, search: bool = True, importance: Floats | None = None
) -> tuple[Floats, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """A scale for each block.

    Args:
        x: Finite, [blocks, size].
        weights: The format to round to.
        scale_type: What scales can be.
        search: Try candidates; otherwise the first of them.
        importance: [blocks, size] or [size]: what the squared error of each number counts.

    Returns:
        Scales [blocks], the squared error of each block with it, and that without a search. A block of zeros has
        the scale 1.
    """
    peak = np.abs(x).max(axis=1)
    power = _power(np.clip(np.frexp(peak)[1], -125, 127))
    blocks = _Blocks(x / power[:, None], power, weights, scale_type, importance)
    first = _first(peak / power, weights, scale_type)
    best, error, _ = blocks.judge(first)
    baseline = error.astype(np.float64)
    for tried, wrong in blocks.candidates(first) if search else ():
        better = wrong < error
        best, error = np.where(better, tried, best), np.where(better, wrong, error)
    scales = np.where(peak > 0, best * power, np.float32(1)).astype(np.float32)
    square = np.square(power.astype(np.float64))
    return scales, error.astype(np.float64) * square, baseline * square


def _first(peak: Floats, weights: Format, scale_type: ScaleType) -> Floats:
    if scale_type.power_of_two:
        return _power(np.frexp(peak)[1] - 1 - weights.exponent)
    first: Floats = peak / np.float32(weights.max)
    return first


def _power(exponent: npt.NDArray[np.integer]) -> Floats:
    power: Floats = np.ldexp(np.float32(1), exponent).astype(np.float32)
    return power


@dataclasses.dataclass
class _Blocks:
    """Blocks divided by `power`, as all scales here are."""

    x: Floats
    power: Floats
    weights: Format
    scale_type: ScaleType
    importance: Floats | None

    def candidates(self, first: Floats) -> Iterator[tuple[Floats, Floats]]:
        """Scales and what they cost."""
        if self.scale_type.power_of_two:
            yield from (self.judge(first * np.float32(2.0**step))[:2] for step in (1, -1))
            return
        for multiple in _MULTIPLES:
            scale, error, refined = self.judge(first * np.float32(multiple))
            yield scale, error
            yield self.judge(refined)[:2]

    def judge(self, scale: Floats) -> tuple[Floats, Floats, Floats]:
        """The nearest scales that there are, the squared error of each block, and the least-squares scales."""
        scale = self.scale_type.round(scale * self.power.astype(np.float64), self.weights) / self.power
        if self.weights.has_kernel and self.importance is None:
            error, above, below, _ = _kernels.rounding_errors(self.x, scale, self.weights.name)
        else:
            error, above, below = self._errors(scale)
        return scale, error, np.divide(above, below, out=scale.copy(), where=below > 0)

    def _errors(self, scale: Floats) -> tuple[Floats, Floats, Floats]:
        """What `_kernels.rounding_errors` gives, of any format."""
        error, above, below = (np.zeros_like(scale) for _ in range(3))
        step = max(1, _PIECE // len(scale))
        for begin in range(0, self.x.shape[1], step):
            x = self.x[:, begin : begin + step]
            counts = None if self.importance is None else self.importance[..., begin : begin + step]
            with np.errstate(over="ignore"):  # what is infinite is held to the largest
                q = self.weights.round(x / scale[:, None])
            difference = q * scale[:, None]
            difference -= x
            error += _sum(difference, difference, counts)
            above += _sum(x, q, counts)
            below += _sum(q, q, counts)
        return error, above, below


def _sum(a: Floats, b: Floats, importance: Floats | None) -> Floats:
    if importance is None:
        sums: Floats = np.einsum("bk,bk->b", a, b)
    else:
        sums = np.einsum("bk,bk,bk->b", a, b, np.broadcast_to(importance, a.shape))
    return sums
