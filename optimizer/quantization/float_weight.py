"""Weights beside rounded activations: floating-point codes with a scale an output channel."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import numpy.typing as npt
from onnxpress.custom_ops import reference

from .quantized_weight import QuantizedWeight
from .rtn import quantize_rtn
from .schemes import WeightScheme

Floats = npt.NDArray[np.float32]

TYPES = {"e4m3fn": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
"""Of codes in NumPy, by format, where ONNX has the type since opset 19."""


@dataclasses.dataclass(frozen=True)
class FloatWeight:
    """A rounded weight.

    Attributes:
        shape: Of the weight.
        axis: Of its N output channels.
        format: Of its numbers.
        rounded: Codes and scales of its channels as rows.
    """

    shape: tuple[int, ...]
    axis: int
    format: str
    rounded: QuantizedWeight
    method = "rtn"

    @property
    def scheme(self) -> str:
        """Of its numbers, for people."""
        return self.format

    @property
    def size(self) -> int:
        """Elements."""
        return int(np.prod(self.shape))

    @property
    def error(self) -> float:
        """Sum of squares of what rounding changed."""
        return self.rounded.error.error

    @property
    def energy(self) -> float:
        """Sum of squares of the weight."""
        return self.rounded.error.energy

    @property
    def stored(self) -> int:
        """Bytes of codes and scales."""
        return self.rounded.packed.nbytes + self.rounded.scales.nbytes

    @property
    def rows_shape(self) -> tuple[int, ...]:
        """With the output channels first."""
        return (self.shape[self.axis], *(size for axis, size in enumerate(self.shape) if axis != self.axis))

    @property
    def scales(self) -> Floats:
        """float32 [N]."""
        scales: Floats = self.rounded.scales[:, 0]
        return scales

    def codes(self) -> npt.NDArray[np.uint8]:
        """uint8 of the weight's shape."""
        K = self.size // max(1, self.shape[self.axis])
        rows = reference.unpack_codes(self.rounded.packed, reference.minifloat_bits(self.format), K, K)
        return np.ascontiguousarray(np.moveaxis(rows.reshape(self.rows_shape), 0, self.axis))

    def decoded(self) -> Floats:
        """What the codes stand for, float32 of the weight's shape."""
        spread = [1] * len(self.shape)
        spread[self.axis] = -1
        numbers: Floats = reference.MINIFLOATS[self.format][self.codes()] * self.scales.reshape(spread)
        return numbers


def round_weight(weight: Floats, axis: int, scheme: WeightScheme) -> FloatWeight:
    """Round a weight with a scale an output channel.

    Args:
        weight: Finite, of any shape but [].
        axis: Of its output channels.
        scheme: Its format, and whether scales are searched.
    """
    rows = np.moveaxis(weight, axis, 0)
    flat = np.ascontiguousarray(rows.reshape(len(rows), -1), np.float32)
    return FloatWeight(weight.shape, axis, scheme.format, quantize_rtn(flat, scheme, True, convolution=weight.ndim > 2))
