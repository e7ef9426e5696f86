"""A weight of codes in blocks, and what rounding to them cost."""

from __future__ import annotations

import dataclasses
import math
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from onnxpress.custom_ops import _kernels, reference

from .schemes import WeightScheme

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]
Number = TypeVar("Number", bound=np.generic)


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
    """Codes, scales and zero points of one weight of N output channels, which have K numbers each.

    Attributes:
        scheme: What the codes mean.
        shape: Of the weight.
        axis: Of its output channels.
        packed: uint8 [N, n_blocks, bytes], bit planes as in `custom_ops.reference.pack_codes`.
        scales: float32 [N, n_blocks], representable in the scheme's scale_type.
        zero_points: uint8 [N, n_blocks], one code a byte: that of zero.
        error: What rounding cost.
        method: How the codes were found.
    """

    scheme: WeightScheme
    shape: tuple[int, ...]
    axis: int
    packed: Codes
    scales: Floats
    zero_points: Codes
    error: WeightError
    method: str = "rtn"

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def K(self) -> int:
        """Numbers of an output channel."""
        return math.prod(self.shape[: self.axis] + self.shape[self.axis + 1 :])

    @property
    def stored(self) -> int:
        """Bytes of codes and scales."""
        scales = self.scales if self.scheme.block_size else self.scale
        return self.packed.nbytes + scales.nbytes

    @property
    def scale(self) -> Floats:
        """Of a weight without blocks: float32 [N], or [] where there is one in all."""
        return self.scales[:, 0] if self.scheme.per_channel else self.scales[0, 0, ...]

    @property
    def rows_shape(self) -> tuple[int, ...]:
        """That of the weight with its output channels first."""
        return (self.shape[self.axis], *self.shape[: self.axis], *self.shape[self.axis + 1 :])

    def with_channels(self, packed: Codes, scales: Floats, zero_points: Codes) -> QuantizedWeight:
        """One of other output channels, as many as are given, with the error of this one."""
        shape = (*self.shape[: self.axis], len(packed), *self.shape[self.axis + 1 :])
        return dataclasses.replace(self, shape=shape, packed=packed, scales=scales, zero_points=zero_points)

    def part(self, channels: slice) -> QuantizedWeight:
        """That of some output channels, with the error of all."""
        return self.with_channels(self.packed[channels], self.scales[channels], self.zero_points[channels])

    def code_rows(self) -> Codes:
        """One code a byte, [N, K]."""
        unpack = _kernels.unpack_codes if self.scheme.block_size else reference.unpack_codes
        return unpack(self.packed, self.scheme.bits, self.scheme.codes_per_block(self.K), self.K)

    def codes(self) -> Codes:
        """One code a byte, in the shape of the weight."""
        return self._shaped(self.code_rows())

    def integers(self) -> npt.NDArray[np.int8]:
        """Codes of integers about zero, in the shape of the weight."""
        return centred(self.codes(), self.scheme)

    def rows(self) -> Floats:
        """What the codes stand for, [N, K]."""
        numbers = self.scheme.number_format.decode(self.code_rows())
        if self.scheme.integer:
            numbers -= self._spread(self.scheme.number_format.decode(self.zero_points))
        numbers *= self._spread(self.scales)
        return numbers

    def values(self) -> Floats:
        """What the codes stand for, in the shape of the weight."""
        return self._shaped(self.rows())

    def _spread(self, of_blocks: Floats) -> Floats:
        """[N, n_blocks] -> what multiplies with [N, K]."""
        if of_blocks.shape[1] == 1:
            return of_blocks
        return np.repeat(of_blocks, self.scheme.block_size, axis=1)[:, : self.K]

    def _shaped(self, rows: npt.NDArray[Number]) -> npt.NDArray[Number]:
        return np.ascontiguousarray(np.moveaxis(rows.reshape(self.rows_shape), 0, self.axis))


def centred(codes: Codes, scheme: WeightScheme) -> npt.NDArray[np.int8]:
    """Codes of integers about zero, which take the place of those that are given."""
    codes -= np.uint8(2 ** (scheme.bits - 1))  # wraps around to two's complement
    return codes.view(np.int8)
