"""SignRound: which way each weight is rounded, and the range of each block, learned by signed gradient descent.

A weight w of a block of range [b m, a M] is rounded to

    w~ = s (q - z),   q = clip(round(w / s + z + v)),   s = (a M - b m) / (2^bits - 1),   z = round(-b m / s)

with an offset v of the weight in [-0.5, 0.5] and multipliers a, b of the block (Cheng et al. 2023, SignRound, arXiv
2309.05516, whose V, alpha and beta they are). Without zero points the scale itself is multiplied, s = a s_0. Offsets of
formats whose numbers do not lie at equal distances count in the distance of the two numbers around w / s. With round(x)
taken as x in derivatives, each of v, a and b goes as far as the others of its kind in every step (SignSGD),

    v <- clip(v - l sign(dL/dv)),   a <- a - r l sign(dL/da),   l = (1 - t / T) / T,

which comes to no more than a half in all. The paper has r = 1. But the ends of a range are some codes away, and move by
as many times l of a code; with r = 3 / (2^bits - 1) they move three times as far as an offset does. On products of a
language model that was better by 0.4 to 0.9 dB in blocks of 32 numbers of 4 bits, and is the same at 2 bits.

The paper's loss is that of a transformer's block, by batches; here it is the product's own on all rows,
L = tr (W~ - W) H (W~ - W)', whose derivative by W~ is twice (W~ - W) H. Rows of W are strangers in it, so each keeps
the best that it has met, and none is worse than its start. That is the search for scales under the diagonal of H, as
version 2 searches them (SignRoundV2, arXiv 2512.04746): by minimum and maximum, low bits begin too far off for 200
steps.

A step costs one product [N, K] x [K, K] for all, 400 N K^2 flops for 200 steps: 0.3 Tflop for a weight of 896 x 896,
8.5 for one of 896 x 4864, where GPTQ needs some (K + N) K^2. Of memory it takes H, and some arrays of a piece of rows
per thread.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..formats import SCALE_TYPES
from ..quantized_weight import QuantizedWeight
from ..rtn import quantize_rtn
from ..schemes import WeightScheme
from .method import Floats, Method, Problem
from .pieces import changed

_STEPS = 200
"""T."""
_CODES = 3
"""By which the end of a range moves where an offset moves by one."""


def _signround(problem: Problem) -> QuantizedWeight:
    scheme, rows, second = problem.scheme, problem.rows, problem.moments.second
    start = quantize_rtn(rows, scheme, True, convolution=problem.convolution, importance=problem.importance(1))

    def learn(given: Floats, numbers: Floats, scales: Floats, zeros: Floats) -> tuple[Floats, Floats, Floats]:
        learned = _Learned(given, second, scheme, numbers, scales, zeros)
        learned.run()
        return learned.best

    return changed(start, rows, len(second), learn)


class _Learned:
    """Output channels of G groups that are learned together.

    Attributes:
        best: Of each channel the numbers [G, n, K], scales and zero points [G, n, blocks] of the least loss met.
    """

    def __init__(
        self, rows: Floats, second: Floats, scheme: WeightScheme, numbers: Floats, scales: Floats, zeros: Floats
    ) -> None:
        K = rows.shape[2]
        self._shape = (*rows.shape[:2], scheme.blocks(K), scheme.codes_per_block(K))
        self._rows = self._in_blocks(rows)
        self._second = second
        self._form = scheme.number_format
        ends = np.array([self._form.min, self._form.max], np.float32)
        self._ends = ends + np.array([-0.5, 0.5], np.float32) * self._form.step(ends)  # of what is not cut off
        self._ranges = _Ranges(scheme, scales[..., None], zeros[..., None])
        self._offsets = np.zeros_like(self._rows)
        self.best = numbers.copy(), scales.copy(), zeros.copy()
        change = (self._in_blocks(numbers) - zeros[..., None]) * scales[..., None] - self._rows
        _, self._least = self._loss(change)

    def run(self) -> None:
        """Take all steps."""
        with np.errstate(over="ignore", invalid="ignore"):  # what is no number is not better
            for step in range(_STEPS + 1):  # the last one judges what the one before it made
                self._step(np.float32((1 - step / _STEPS) / _STEPS))

    def _in_blocks(self, flat: Floats) -> Floats:
        """[G, n, K] -> [G, n, blocks, block], zeros behind K."""
        padding = self._shape[2] * self._shape[3] - flat.shape[2]
        return np.pad(flat, [(0, 0), (0, 0), (0, padding)]).reshape(self._shape)

    def _loss(self, change: Floats) -> tuple[Floats, npt.NDArray[np.float64]]:
        """E H in the shape of E, zero for what pads, and e H e' of each channel."""
        flat, K = change.reshape(*self._shape[:2], -1), self._second.shape[1]
        product = np.zeros_like(flat)
        np.matmul(flat[..., :K], self._second, out=product[..., :K])
        return product.reshape(self._shape), np.einsum("gnk,gnk->gn", flat, product, dtype=np.float64)

    def _step(self, rate: np.float32) -> None:
        """Judge what there is, and move on."""
        form, scales, zeros = self._form, self._ranges.scales, self._ranges.zeros
        scaled = self._rows * _inverse(scales)
        moved = form.step(scaled)
        moved *= self._offsets
        moved += scaled
        moved += zeros
        numbers = form.round(moved)
        held = (moved >= self._ends[0]) & (moved <= self._ends[1])
        steps = numbers - zeros
        change = steps * scales
        change -= self._rows
        product, loss = self._loss(change)
        self._keep(loss, numbers)
        np.subtract(steps, scaled, out=steps, where=held)
        by_scale = (product * steps).sum(-1, keepdims=True)
        by_zero = -scales * (product * ~held).sum(-1, keepdims=True)
        self._ranges.move(rate, by_scale, by_zero)
        slope = np.sign(product)
        slope *= held
        slope *= rate * np.sign(scales)
        self._offsets -= slope
        np.clip(self._offsets, np.float32(-0.5), np.float32(0.5), out=self._offsets)

    def _keep(self, loss: npt.NDArray[np.float64], numbers: Floats) -> None:
        """Of channels that have not been better."""
        better = loss < self._least
        self._least[better] = loss[better]
        flat = numbers.reshape(*self._shape[:2], -1)[..., : self._second.shape[1]]
        for best, now in zip(self.best, (flat, self._ranges.scales[..., 0], self._ranges.zeros[..., 0]), strict=True):
            best[better] = now[better]


class _Ranges:
    """Of blocks, learned where there are scales in between and each channel has its own.

    Attributes:
        scales: float32 [..., 1], that there are.
        zeros: Whole numbers [..., 1].
    """

    def __init__(self, scheme: WeightScheme, scales: Floats, zeros: Floats) -> None:
        self._form = scheme.number_format
        self._type = SCALE_TYPES[scheme.scale_type]
        self._both = scheme.integer and not scheme.symmetric
        self._fixed = self._type.power_of_two or not (scheme.per_channel or scheme.block_size)
        self._rate = np.float32(_CODES / (2**scheme.bits - 1))
        self._start = scales
        self._low, self._high = ((np.float32(end) - zeros) * scales for end in (self._form.min, self._form.max))
        self._above, self._below = np.ones_like(scales), np.ones_like(scales)  # a and b
        self.scales, self.zeros = scales, zeros

    def move(self, rate: np.float32, by_scale: Floats, by_zero: Floats) -> None:
        """Go a step.

        Args:
            rate: Its length for offsets.
            by_scale: Derivatives by scales, at these zero points.
            by_zero: By zero points, at these scales.
        """
        if self._fixed:
            return
        rate *= self._rate
        if not self._both:
            self._above -= rate * np.sign(by_scale * self._start)
            self.scales = self._rounded(self._above * self._start)
            return
        levels = np.float32(self._form.max - self._form.min)
        # With z' = z - min = -b m / s:  ds = (M da - m db) / levels,  dz' = -(z' ds + m db) / s
        inverse = _inverse(self.scales)
        whole = by_scale - by_zero * (self.zeros - np.float32(self._form.min)) * inverse
        self._above -= rate * np.sign(whole * self._high)
        self._below += rate * np.sign(self._low * (whole / levels + by_zero * inverse))
        low, high = self._below * self._low, self._above * self._high
        self.scales = self._rounded((high - low) / levels)
        self.zeros = self._form.round(np.float32(self._form.min) - low * _inverse(self.scales))

    def _rounded(self, scales: Floats) -> Floats:
        """To those that there are, of either sign; 0 stays."""
        rounded = self._type.round(np.abs(scales), self._form)
        return np.where(scales == 0, scales, np.copysign(rounded, scales))


def _inverse(scales: Floats) -> Floats:
    """0 for 0."""
    return np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)


SIGNROUND = Method("signround", _signround)
"""Offsets of rounding and ranges of blocks learned by signed gradient descent."""
