"""Weights of any shape rounded by themselves, with a search of scales for those beside activations of 8 bits.

Such weights have z = 0 and codes within -127 and 127, the scale of each channel that of

    min over s of sum h (w - s clip(rint(w / s)))^2,   h = LEAST_COUNT + w^2 / mean(w^2),

errors that count more where weights are large (`custom_ops.reference.quantize_block` says why), among some multiples of
that of the largest magnitude and the best's least-squares scale for the codes it gives.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from onnxpress.custom_ops.reference import LEAST_COUNT

from .affine import sound_scale
from .quantized_weight import Floats, QuantizedWeight, WeightError
from .rtn import quantize_rtn
from .schemes import WeightScheme
from .threads import threads

_MULTIPLES = (0.97, 0.94, 0.9, 0.85)
_PIECE = 1 << 18  # elements searched at a time: some arrays of it stay in a core's cache


def round_weight(
    weight: npt.NDArray[np.floating],
    axis: int,
    scheme: WeightScheme,
    *,
    convolution: bool = False,
    least_scale: Floats | None = None,
) -> QuantizedWeight:
    """Round a weight to the nearest.

    Args:
        weight: Finite, of any shape but [].
        axis: That of its output channels.
        scheme: What it is rounded to.
        convolution: As for `quantize_rtn`.
        least_scale: Of `int8_weights`: float32 [N] or [], no scale may be below, see `affine.least_weight_scale`.

    Returns:
        The codes and their error; of `int8_weights` a channel of zeros has the least scale of its neighbours, which its
        bias is then told in.
    """
    if scheme.beside_int8:
        return _beside_int8(weight.astype(np.float32, copy=False), axis, scheme, least_scale)
    if weight.ndim == 2:
        return quantize_rtn(np.ascontiguousarray(weight), scheme, axis == 0, convolution=convolution)
    rows = np.moveaxis(weight, axis, 0)
    found = quantize_rtn(np.ascontiguousarray(rows.reshape(len(rows), -1)), scheme, True, convolution=convolution)
    return dataclasses.replace(found, shape=weight.shape, axis=axis)


def _beside_int8(weight: Floats, axis: int, scheme: WeightScheme, least_scale: Floats | None) -> QuantizedWeight:
    channels = np.moveaxis(weight, axis, 0)
    # One scale in all is of sums in the order of the weight.
    rows, count = (channels, len(channels)) if scheme.per_channel else (weight, 1)
    flat = rows.reshape(count, -1) if weight.size else np.zeros((count, 1), np.float32)
    numbers = scheme.number_format
    most, zero = np.float32(numbers.max), np.float32(numbers.zero)
    extremes = np.abs(flat).max(axis=1)
    least = np.broadcast_to(sound_scale(0 if least_scale is None else least_scale), len(flat))
    used = extremes[extremes > 0]
    extremes = np.where(extremes > 0, extremes, used.min() if used.size else most)
    scale = np.maximum(sound_scale(extremes / most), least)
    codes = np.empty(flat.shape, np.uint8)

    def run(piece: slice) -> tuple[float, ...]:
        part = _Channels(flat[piece], most)
        baseline = cost = part.costs(part.codes(scale[piece]), scale[piece])
        if scheme.search:
            scale[piece], cost = part.search(scale[piece], cost, least[piece])
        found = part.codes(scale[piece])
        codes[piece] = found + zero
        error = np.square(found * scale[piece, None] - part.rows)
        sums = (error, cost, baseline, np.square(part.rows))
        return tuple(float(each.sum(dtype=np.float64)) for each in sums)

    with ThreadPoolExecutor(threads()) as pool:
        sums = list(pool.map(run, _pieces(flat.shape)))
    shaped = (codes if weight.size else codes[:, :0]).reshape(rows.shape)
    by_channel = shaped if scheme.per_channel else np.moveaxis(shaped, axis, 0)
    size = weight.size // max(1, len(channels))
    packed = np.ascontiguousarray(by_channel.reshape(len(channels), 1, size))  # a code of 8 bits is its own plane
    scales = np.ascontiguousarray(np.broadcast_to(scale[:, None], (len(channels), 1)))
    zeros = np.full(scales.shape, zero, np.uint8)
    error = WeightError(*map(math.fsum, zip(*sums, strict=True)))
    return QuantizedWeight(scheme, weight.shape, axis, packed, scales, zeros, error)


def _pieces(shape: tuple[int, ...]) -> Iterator[slice]:
    step = max(1, _PIECE // shape[1])
    return (slice(begin, begin + step) for begin in range(0, shape[0], step))


class _Channels:
    """Channels of a weight as rows, and their codes for given scales."""

    def __init__(self, rows: Floats, most: np.float32) -> None:
        self.rows = np.ascontiguousarray(rows)
        self._most = most
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
