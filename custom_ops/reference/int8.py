"""Products of 8-bit numbers."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from .types import Float32

SPLIT_K = 1 << 15
"""How much of a long K has a sum of its own."""


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
        float32 [M, N]: the sums of int32, rounded to float32, times float32 scales, plus bias. Where K is so long that
        such a sum could overflow, each segment of `SPLIT_K` of K has one, and the products are added one after the
        other in float32.
    """
    points = np.asarray(weight_zero_points, np.int64)
    a, w = codes.astype(np.int64) - zero_point, weight.astype(np.int64) - points
    # Of the codes as int8.
    has_zero_points = np.any(points != (128 if weight.dtype == np.uint8 else 0))
    is_long = len(w) > np.iinfo(np.int32).max // (255 * (255 if has_zero_points else 128))
    factor = np.float32(scale) * np.asarray(weight_scales, np.float32)
    size = SPLIT_K if is_long else max(len(w), 1)
    sums = [a[:, k : k + size] @ w[k : k + size] for k in range(0, max(len(w), 1), size)]
    y: Float32 = functools.reduce(np.add, [part.astype(np.float32) * factor for part in sums])
    return y if bias is None else y + bias
