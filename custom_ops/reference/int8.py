"""Products of 8-bit numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .types import Float32


def quantize_linear(x: Float32, scale: np.float32 | float, zero_point: np.uint8 | np.int8) -> npt.NDArray[np.generic]:
    """Round to the nearest code, ties to even, within the range of the type of `zero_point`; a NaN to the lowest."""
    bounds = np.iinfo(zero_point.dtype)
    offset = np.float32(zero_point)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        value = x / np.float32(scale)
    lowest = np.float32(bounds.min) - offset
    value = np.clip(np.where(np.isnan(value), lowest, value), lowest, np.float32(bounds.max) - offset)
    codes: npt.NDArray[np.generic] = (np.rint(value) + offset).astype(zero_point.dtype)
    return codes


def dynamic_quantize_linear(x: Float32) -> tuple[npt.NDArray[np.generic], np.float32, np.uint8]:
    """ONNX's DynamicQuantizeLinear: uint8 over [min(0, min), max(0, max)]; all zeros have a scale of 1.

    Returns:
        Codes of the shape of `x`, their scale and their zero point.
    """
    low = np.float32(min(0, x.min(initial=0)))
    high = np.float32(max(0, x.max(initial=0)))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        scale = np.float32(1) if low == high else np.float32((high - low) / np.float32(255))
        offset = np.float32(0) - low / scale
    # An infinity below zero leaves infinity / infinity, for which ONNX Runtime takes the highest.
    zero_point = np.uint8(255) if np.isnan(offset) else np.uint8(np.rint(np.clip(offset, 0, 255)))
    return quantize_linear(x, scale, zero_point), scale, zero_point


def matmul_int8(
    codes: npt.NDArray[np.generic],
    weight: npt.NDArray[np.generic],
    *,
    scale: np.float32 | float = 1.0,
    zero_point: int = 0,
    weight_scales: Float32 | float = 1.0,
    weight_zero_points: npt.NDArray[np.generic] | int = 0,
    bias: Float32 | None = None,
) -> Float32:
    """Multiply 8-bit activations by an 8-bit weight.

    Args:
        codes: uint8 or int8 [M, K].
        weight: uint8 or int8 [K, N].
        scale: Of the activations.
        zero_point: Of the activations.
        weight_scales: One for all or [N].
        weight_zero_points: One for all or [N].
        bias: float32 [N].

    Returns:
        float32 [M, N]: the sums as int32 (modulo 2**32), rounded to float32, times float32 scales, plus bias.
    """
    sums = (codes.astype(np.int64) - zero_point) @ (weight.astype(np.int64) - np.asarray(weight_zero_points, np.int64))
    factor = np.float32(scale) * np.asarray(weight_scales, np.float32)
    y: Float32 = sums.astype(np.int32).astype(np.float32) * factor
    return y if bias is None else y + bias
