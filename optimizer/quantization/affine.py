"""Codes of 8 bits and what they mean: x = s (q - z), with q rounded to the nearest and held within its type.

Activations: z is a whole number, so zero has a code of its own: padding and the cut of a Relu cost nothing. Weights:
z = 0 and codes within -127 and 127, the scale of each channel that of

    min over s of sum h (w - s clip(rint(w / s)))^2,   h = LEAST_COUNT + w^2 / mean(w^2),

errors that count more where weights are large (`custom_ops.reference.quantize_block` says why), among some multiples of
that of the largest magnitude and the best's least-squares scale for the codes it gives. Biases: int32 in units of
s_x s_w, which is what the sum of a product comes in.

A scale is never below 2^-60, so that a product of two of them is still a normal float32.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from onnxpress.custom_ops.reference import LEAST_COUNT

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]

LEAST_SCALE = np.float32(2.0**-60)
_MULTIPLES = (0.97, 0.94, 0.9, 0.85)
_SUMS = ("error", "energy", "cost", "baseline")
_PIECE = 1 << 18  # elements searched at a time: some arrays of it stay in a core's cache
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
    scale = _sound((high - low) / (limits.max - limits.min) if high > low else 1.0)
    zero_point = limits.min + 128 if symmetric else np.clip(np.rint(limits.min - low / scale), limits.min, limits.max)
    return AffineParameters(scale, np.asarray(zero_point, limits.dtype))


def _sound(scale: npt.ArrayLike) -> Floats:
    """As float32, within what that type holds."""
    return np.asarray(np.clip(np.asarray(scale, np.float64), LEAST_SCALE, np.finfo(np.float32).max), np.float32)


@dataclasses.dataclass(frozen=True)
class QuantizedTensor:
    """A rounded weight.

    Attributes:
        codes: int8, of the weight's shape.
        scale: float32 [] or [N].
        zero_point: int8 zeros of the same shape.
        error: Sum of squares of what rounding changed.
        energy: Sum of squares of the weight.
        cost: What the search of scales minimised.
        baseline: The same with the scales of the largest magnitudes.
        method: How the codes were found: "rtn" or "gptq".
    """

    codes: Codes
    scale: Floats
    zero_point: Codes
    error: float
    energy: float
    cost: float = 0.0
    baseline: float = 0.0
    method: str = "rtn"
    scheme = "int8"

    @property
    def size(self) -> int:
        """Its elements."""
        return self.codes.size

    @property
    def stored(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scale.nbytes


def quantize_weight(
    weight: Floats,
    axis: int | None,
    *,
    reduce_range: bool = False,
    search: bool = True,
    least_scale: Floats | None = None,
) -> QuantizedTensor:
    """Round a weight to symmetric codes of int8.

    Args:
        weight: Finite, of any shape.
        axis: That of its output channels, which get a scale each; None for one scale in all.
        reduce_range: Codes within -63 and 63: two products by a uint8 then fit int16, in which CPUs without VNNI
            add them up. Otherwise within -127 and 127.
        search: Search the scale; otherwise the largest magnitude gets the last code.
        least_scale: [N] (or []), no scale may be below: see `least_weight_scale`.

    Returns:
        Codes and scales. A channel of zeros has the least scale of its neighbours, which its bias is then told in.
    """
    most = 63 if reduce_range else 127
    rows = weight.reshape(1, -1) if axis is None else np.moveaxis(weight, axis, 0)
    flat = rows.reshape(len(rows), -1) if weight.size else np.zeros((len(rows), 1), np.float32)
    extremes = np.abs(flat).max(axis=1)
    least = np.broadcast_to(_sound(0 if least_scale is None else least_scale), len(flat))
    used = extremes[extremes > 0]
    extremes = np.where(extremes > 0, extremes, used.min() if used.size else np.float32(most))
    scale = np.maximum(_sound(extremes / np.float32(most)), least)
    codes = np.empty(flat.shape, np.int8)

    def run(piece: slice) -> tuple[float, ...]:
        channels = _Channels(flat[piece], most)
        baseline = cost = channels.costs(channels.codes(scale[piece]), scale[piece])
        if search:
            scale[piece], cost = channels.search(scale[piece], cost, least[piece])
        codes[piece] = found = channels.codes(scale[piece])
        error = np.square(found * scale[piece, None] - channels.rows)
        sums = (error, np.square(channels.rows), cost, baseline)
        return tuple(float(each.sum(dtype=np.float64)) for each in sums)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        sums = list(pool.map(run, _pieces(flat.shape)))
    codes = codes[:, :0] if not weight.size else codes
    shaped = codes.reshape(weight.shape) if axis is None else np.moveaxis(codes.reshape(rows.shape), 0, axis)
    scale = scale.reshape(()) if axis is None else scale
    return QuantizedTensor(
        codes=np.ascontiguousarray(shaped),
        scale=scale,
        zero_point=np.zeros(scale.shape, np.int8),
        method="rtn",
        **{name: math.fsum(each) for name, each in zip(_SUMS, zip(*sums, strict=True), strict=True)},
    )


def _pieces(shape: tuple[int, ...]) -> Iterator[slice]:
    step = max(1, _PIECE // shape[1])
    return (slice(begin, begin + step) for begin in range(0, shape[0], step))


class _Channels:
    """Channels of a weight as rows, and their codes for given scales."""

    def __init__(self, rows: Floats, most: int) -> None:
        self.rows = np.ascontiguousarray(rows)
        self._most = np.float32(most)
        peak = np.abs(self.rows).max(axis=1, keepdims=True)
        share = np.divide(self.rows, peak, out=np.zeros_like(self.rows), where=peak > 0)
        np.square(share, out=share)
        mean = share.mean(axis=1, keepdims=True)
        self._counts: Floats = np.divide(share, mean, out=share, where=mean > 0)
        self._counts += np.float32(LEAST_COUNT)

    def codes(self, scale: Floats) -> Floats:
        """Whole numbers as float32."""
        codes = self.rows / scale[:, None]
        np.rint(codes, out=codes)
        return np.clip(codes, -self._most, self._most, out=codes)

    def costs(self, codes: Floats, scale: Floats) -> Floats:
        """What each row costs."""
        wrong = codes * scale[:, None]
        wrong -= self.rows
        sums: Floats = np.einsum("nk,nk,nk->n", wrong, wrong, self._counts)
        return sums

    def search(self, scale: Floats, cost: Floats, least: Floats) -> tuple[Floats, Floats]:
        """The best scale of each row, and its cost: `scale`, a multiple, or the best's least-squares one."""
        best = scale
        for multiple in (*_MULTIPLES, None):
            tried = self._least_squares(best) if multiple is None else scale * np.float32(multiple)
            tried = np.maximum(tried, least)
            wrong = self.costs(self.codes(tried), tried)
            better = wrong < cost
            best, cost = np.where(better, tried, best), np.where(better, wrong, cost)
        return best, cost

    def _least_squares(self, scale: Floats) -> Floats:
        codes = self.codes(scale)
        weighted = codes * self._counts
        above, below = np.einsum("nk,nk->n", weighted, self.rows), np.einsum("nk,nk->n", weighted, codes)
        found: Floats = np.divide(above, below, out=scale.copy(), where=below > 0)
        return found


def least_weight_scale(bias: npt.NDArray[np.floating], x_scale: npt.ArrayLike) -> Floats:
    """The smallest scales of a weight with which a bias fits int32, and a sum of products beside it.

    Args:
        bias: [N], finite.
        x_scale: That of the activation.

    Returns:
        float32 [N].
    """
    x = float(np.asarray(x_scale))
    return _sound(np.abs(bias.astype(np.float64)) / (x * _MOST_BIAS))


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
