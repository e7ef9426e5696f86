"""A weight of codes in blocks, and what rounding to them cost."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
from onnxpress.custom_ops import _kernels, reference

from .schemes import WeightScheme

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class WeightError:
    """Sums over a weight.

    Attributes:
        error: Squared error.
        cost: What the scale search minimised: errors that count more where weights are large, see `formats.search`.
        baseline: The same of plain min/max rounding.
        energy: Squares of the weight.
    """

    error: float
    cost: float
    baseline: float
    energy: float

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise ratio in dB."""
        return decibels(self.energy, self.error)

    @property
    def gain(self) -> float:
        """By how much the scale search lowered what it minimises, against plain min/max, in dB."""
        return decibels(self.baseline, self.cost)


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise); infinite for no noise, 0 for neither, minus infinite for noise that is infinite."""
    if noise == 0:
        return math.inf if signal > 0 else 0.0
    ratio = signal / noise
    return 10 * math.log10(ratio) if ratio > 0 else -math.inf


def pack_codes(codes: Codes, zero_points: Codes, scheme: WeightScheme) -> Codes:
    """Codes [N, K] as `QuantizedWeight.packed`; what pads the last block are the codes of zero, [N, n_blocks]."""
    K, block = codes.shape[1], scheme.codes_per_block(codes.shape[1])
    padded = np.repeat(zero_points, block, axis=1)
    padded[:, :K] = codes
    return _kernels.pack_zero_points(padded.reshape(-1, block), scheme.bits).reshape(*zero_points.shape, -1)


@dataclasses.dataclass(frozen=True)
class QuantizedWeight:
    """Codes, scales and zero points of one weight.

    Attributes:
        packed: uint8 [N, n_blocks, bytes], bit planes as in `custom_ops.reference.pack_codes`.
        scales: float32 [N, n_blocks], representable in the scheme's scale_type.
        zero_points: uint8 [N, n_blocks], one code a byte: that of zero.
        error: What rounding cost.
    """

    packed: Codes
    scales: Floats
    zero_points: Codes
    error: WeightError

    def part(self, channels: slice) -> QuantizedWeight:
        """That of some output channels, with the error of all."""
        return QuantizedWeight(self.packed[channels], self.scales[channels], self.zero_points[channels], self.error)

    def codes(self, scheme: WeightScheme, K: int) -> Codes:
        """One code a byte, [N, K]."""
        return reference.unpack_codes(self.packed, scheme.bits, scheme.codes_per_block(K), K)

    def decoded(self, scheme: WeightScheme, K: int) -> Floats:
        """What the codes stand for, [N, K]."""
        block = scheme.codes_per_block(K)
        numbers = scheme.number_format.decode(self.codes(scheme, K))
        if scheme.integer:
            zeros = scheme.number_format.decode(self.zero_points)
            numbers -= np.repeat(zeros, block, axis=1)[:, :K]
        numbers *= np.repeat(self.scales, block, axis=1)[:, :K]
        return numbers
