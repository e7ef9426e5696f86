"""Rounded weights whose scales are trained.

A weight is (number of its code - zero point) * scale, block by block. Codes and zero points stay as they are, one byte
each, and scales are s = s_0 (1 + t) with t trained, so that all blocks move by the same share whatever their size.
Scales of fewer bits than float32 are rounded in the weight, and taken as they are in derivatives (straight-through).
What a scale is worth is the sum of dL/dw (number - zero point) over its block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..quantization.formats import SCALE_TYPES
from ..quantization.quantized_weight import QuantizedWeight
from .held_scales import as_held, held_scales

_PIECE = 1 << 22
"""Numbers that are decoded at a time."""


class RoundedWeight:
    """A weight of N output channels with K numbers each.

    Args:
        weight: As it is rounded.
        factor: By which the nodes that read it multiply still, and that is in it already.

    Attributes:
        change: t, float32 [N, blocks], trained where the scheme has scales in between.
    """

    def __init__(self, weight: QuantizedWeight, factor: float = 1.0) -> None:
        self._weight, self._inverse = weight, 1 / factor
        scheme = weight.scheme
        block = scheme.codes_per_block(weight.K)
        codes = np.repeat(weight.zero_points, block, axis=1)
        codes[:, : weight.K] = weight.code_rows()
        self._codes = torch.from_numpy(codes.reshape(*weight.zero_points.shape, block))
        form = scheme.number_format
        zeros = form.decode(weight.zero_points) if scheme.integer else np.zeros(weight.zero_points.shape, np.float32)
        self._zeros = torch.from_numpy(zeros)[..., None]
        self._values = None if scheme.integer else torch.from_numpy(form.values)
        self._least = float(form.values[0]) if scheme.integer else 0.0
        self._scales = torch.from_numpy(weight.scales.copy())
        has_own = bool(scheme.block_size) or scheme.per_channel
        moves = has_own and not SCALE_TYPES[scheme.scale_type].power_of_two
        self.change = torch.zeros_like(self._scales, requires_grad=moves)

    def rows(self) -> torch.Tensor:
        """The weight as it is now, [N, K]."""
        scales = as_held(self._scales * (1 + self.change), self._weight.scheme)
        rows: torch.Tensor = _Dequantized.apply(scales * self._inverse, self)
        return rows[:, : self._weight.K]

    def result(self) -> QuantizedWeight:
        """The weight with the scales as they are now; its errors are those that it had."""
        with torch.no_grad():
            scales = held_scales((self._scales * (1 + self.change)).numpy(), self._weight.scheme)
        return dataclasses.replace(self._weight, scales=scales)

    def pieces(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Some output channels at a time, and (number - zero point) of each of their codes, [n, blocks, block]."""
        step = max(1, _PIECE // self._codes[0].numel())
        for begin in range(0, len(self._codes), step):
            part = slice(begin, begin + step)
            codes = self._codes[part]
            if self._values is not None:
                yield part, self._values[codes.to(torch.int64)]
            else:
                yield part, codes.to(torch.float32).sub_(self._zeros[part] - self._least)

    @property
    def shape(self) -> tuple[int, ...]:
        """Output channels, blocks and codes of one."""
        return tuple(self._codes.shape)


class _Dequantized(torch.autograd.Function):  # type: ignore[misc]
    """Scales [N, blocks] times codes, as [N, blocks * block]; the codes are decoded once more on the way back."""

    @staticmethod
    def forward(context: Any, scales: torch.Tensor, weight: RoundedWeight) -> torch.Tensor:
        context.weight = weight
        numbers = torch.empty(weight.shape)
        for part, steps in weight.pieces():
            torch.mul(steps, scales[part, :, None], out=numbers[part])
        return numbers.reshape(len(numbers), -1)

    @staticmethod
    def backward(context: Any, slope: torch.Tensor) -> tuple[torch.Tensor, None]:
        weight: RoundedWeight = context.weight
        slope = slope.reshape(weight.shape)
        by_scale = torch.empty(weight.shape[:2])
        for part, steps in weight.pieces():
            by_scale[part] = steps.mul_(slope[part]).sum(-1)
        return by_scale, None
