"""Codes of 8 bits and what they mean: x = s (q - z), with q rounded to the nearest and held within its type.

Activations: z is a whole number, so zero has a code of its own: padding and the cut of a Relu cost nothing. Weights are
rounded by `round_weight`. Biases: int32 in units of s_x s_w, which is what the sum of a product comes in.

A scale is never below 2^-60, so that a product of two of them is still a normal float32.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

LEAST_SCALE = np.float32(2.0**-60)
_MOST_BIAS = 2**30
"""Codes of biases are held below: the other half of int32 is for the sum of products, 33,000 of the largest."""


@dataclasses.dataclass(frozen=True)
class AffineParameters:
    """What codes mean.

    Attributes:
        scale: float32, of shape [] or, one a channel, [N].
        zero_point: uint8, int8 or int32 of the same shape: its type is that of the codes.
    """

    scale: Floats
    zero_point: npt.NDArray[Any]

    def quantize(self, x: npt.NDArray[np.floating], axis: int | None = None) -> npt.NDArray[Any]:
        """The codes of finite numbers, as QuantizeLinear gives them.

        Args:
            x: Any shape.
            axis: That of the channels, where there are scales for them.
        """
        limits = np.iinfo(self.zero_point.dtype)
        kind = np.float64 if limits.bits > 16 else np.float32  # a float32 cannot hold all codes of int32
        codes = np.rint(x.astype(kind) / self._spread(self.scale, x.ndim, axis).astype(kind))
        codes += self._spread(self.zero_point, x.ndim, axis)
        return np.clip(codes, limits.min, limits.max).astype(limits.dtype)

    def dequantize(self, codes: npt.NDArray[Any], axis: int | None = None) -> Floats:
        """The numbers that codes stand for, float32, as DequantizeLinear gives them."""
        steps = codes.astype(np.int64) - self._spread(self.zero_point, codes.ndim, axis)
        numbers: Floats = steps.astype(np.float32) * self._spread(self.scale, codes.ndim, axis)
        return numbers

    @staticmethod
    def _spread(parameter: npt.NDArray[Any], rank: int, axis: int | None) -> npt.NDArray[Any]:
        if parameter.ndim == 0 or axis is None:
            return parameter
        shape = [1] * rank
        shape[axis] = len(parameter)
        return parameter.reshape(shape)


def parameters_of_range(low: float, high: float, dtype: npt.DTypeLike, symmetric: bool = False) -> AffineParameters:
    """Scale and zero point for numbers within a range, which is widened to hold zero.

    Every number of the range comes back within half a scale.

    Args:
        low: The lowest number, finite.
        high: The highest, no lower.
        dtype: uint8 or int8.
        symmetric: Zero in the middle of the codes.

    Raises:
        ValueError: The bounds are not finite, or the wrong way round.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"a range from {low} to {high}")
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if symmetric:
        high = max(-low, high)
        low = -high
    limits = np.iinfo(dtype)
    scale = sound_scale((high - low) / (limits.max - limits.min) if high > low else 1.0)
    zero_point = limits.min + 128 if symmetric else np.clip(np.rint(limits.min - low / scale), limits.min, limits.max)
    return AffineParameters(scale, np.asarray(zero_point, limits.dtype))


def sound_scale(scale: npt.ArrayLike) -> Floats:
    """As float32, from `LEAST_SCALE` to what that type holds."""
    return np.asarray(np.clip(np.asarray(scale, np.float64), LEAST_SCALE, np.finfo(np.float32).max), np.float32)


def least_weight_scale(bias: npt.NDArray[np.floating], x_scale: npt.ArrayLike) -> Floats:
    """The smallest scales of a weight with which a bias fits int32, and a sum of products beside it.

    Args:
        bias: [N], finite.
        x_scale: That of the activation.

    Returns:
        float32 [N].
    """
    x = float(np.asarray(x_scale))
    return sound_scale(np.abs(bias.astype(np.float64)) / (x * _MOST_BIAS))


def quantize_bias(
    bias: npt.NDArray[np.floating], x_scale: npt.ArrayLike, weight_scale: Floats
) -> tuple[npt.NDArray[np.int32], Floats]:
    """A bias in units of the products it is added to.

    Args:
        bias: [N], finite.
        x_scale: That of the activation.
        weight_scale: [N] or [].

    Returns:
        int32 [N], and their scale x_scale * weight_scale as float32, of the shape of `weight_scale`.

    Raises:
        ValueError: A code does not fit int32, or the scale is no normal float32.
    """
    with np.errstate(over="ignore", under="ignore"):
        scale: Floats = np.asarray(np.float32(np.asarray(x_scale)) * weight_scale, np.float32)
    if not np.isfinite(scale).all() or (scale < np.finfo(np.float32).tiny).any():
        raise ValueError("the scales of activation and weight have no product in float32")
    codes = np.rint(bias.astype(np.float64) / scale)
    if not (np.abs(codes) < 2**31).all():
        raise ValueError("the bias does not fit int32 in units of the product's scales")
    return codes.astype(np.int32), scale
