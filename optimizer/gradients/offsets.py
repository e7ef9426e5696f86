"""Rounded integers of which offsets of rounding and ranges are trained.

As in SignRound (Cheng et al. 2023, arXiv 2309.05516) a weight is

    s (q - z),   q = clip(round(x / s + z + v)),   s = a s_0

with an offset v of the weight and a multiplier a of its block, and round(x) is taken as x in derivatives; zero points
stay. x is not the weight itself but the number nearest to it that rounds to the code that it has at the start, so that
training goes on from any method's codes, as those of GPTQ.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import torch

from ..quantization.quantized_weight import QuantizedWeight, pack_codes
from .held_scales import as_held

_WITHIN = 0.49
"""Of half a code: as far from a code as a number may be at the start."""
_CODES = 3
"""By which the end of a range moves where an offset moves by one, as `quantization.methods.signround` has it."""


class OffsetWeight:
    """A weight of integers, of N output channels with K numbers each.

    Args:
        weight: As it is rounded.
        rows: What it is rounded from, float32 [N, K].
        factor: By which the nodes that read it multiply still, and that is in it already.

    Attributes:
        parameters: v, float32 [N, K], and a, [N, blocks].
        lengths: How far these go in a step, one beside the other.
    """

    def __init__(self, weight: QuantizedWeight, rows: npt.NDArray[np.float32], factor: float = 1.0) -> None:
        scheme = weight.scheme
        self._weight, self._inverse = weight, 1 / factor
        self._form = scheme.number_format
        self._block = scheme.codes_per_block(weight.K)
        self._scales = torch.from_numpy(weight.scales.copy())
        self._zeros = self._spread(torch.from_numpy(self._form.decode(weight.zero_points)))
        codes = torch.from_numpy(self._form.decode(weight.code_rows()))
        scales = self._spread(self._scales)
        exact = torch.from_numpy(np.ascontiguousarray(rows)) / torch.where(scales == 0, 1.0, scales) + self._zeros
        self._exact = (torch.clamp(exact, codes - _WITHIN, codes + _WITHIN) - self._zeros) * scales
        self._offsets = torch.zeros_like(self._exact, requires_grad=True)
        self._above = torch.ones_like(self._scales, requires_grad=True)
        self.parameters = [self._offsets, self._above]
        self.lengths = [1.0, _CODES / (2**scheme.bits - 1)]

    def rows(self) -> torch.Tensor:
        """The weight as it is now, [N, K]."""
        scales = self._spread(self._held())
        return (self._numbers(scales) - self._zeros) * scales * self._inverse

    def result(self) -> QuantizedWeight:
        """The weight with codes and scales as they are now; its errors are those that it had."""
        with torch.no_grad():
            scales = self._held()
            codes = self._form.encode(self._numbers(self._spread(scales)).numpy())
        packed = pack_codes(codes, self._weight.zero_points, self._weight.scheme)
        return dataclasses.replace(self._weight, packed=packed, scales=scales.numpy())

    def _numbers(self, scales: torch.Tensor) -> torch.Tensor:
        moved = self._exact / torch.where(scales == 0, 1.0, scales) + self._zeros + self._offsets.clamp(-0.5, 0.5)
        rounded = moved + (moved.round() - moved).detach()
        return rounded.clamp(float(self._form.min), float(self._form.max))

    def _held(self) -> torch.Tensor:
        return as_held(self._scales * self._above, self._weight.scheme)

    def _spread(self, of_blocks: torch.Tensor) -> torch.Tensor:
        return of_blocks.repeat_interleave(self._block, 1)[:, : self._weight.K]
