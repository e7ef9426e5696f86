"""Rounding of a weight that lets inputs not yet rounded make up for what was lost on others.

With inputs of covariance H the error of a product is the sum over its outputs of (q - w)' H (q - w). Inputs are rounded
one after the other, those that vary most first; what rounding input k changed, d = w_k - q_k, moves the others to where
the error is least:

    w_j += d U_kj / U_kk   for j > k,   H^-1 = U' U with U upper triangular

(Frantar et al. 2023, GPTQ, equations 2 and 3 in Cholesky form, in blocks; after Hassibi & Stork 1993). H is taken about
the mean where the mean of the error goes into a bias.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .affine import QuantizedTensor

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Nearest = Callable[[Doubles], npt.NDArray[np.floating]]
"""Numbers of any shape -> those that there are next to them."""

_DAMPING = 0.01
"""Of the mean of the diagonal, added to it, so that the inverse exists (GPTQ, section 3.3)."""
_BLOCK = 64
"""Inputs whose changes reach those behind the block in one product of matrices."""
_MOST_WEIGHTS = 1 << 22
"""Rounded at a time: of each there are some float64."""


def gptq(
    weight: Floats, axis: int, rounded: QuantizedTensor, covariance: Doubles, *, reduce_range: bool = False
) -> QuantizedTensor:
    """Round a weight anew with the scales that it has.

    Args:
        weight: Of any shape.
        axis: That of its N output channels.
        rounded: Its codes by `quantize_weight`.
        covariance: [G, K, K] of the inputs of G groups of N / G channels each.
        reduce_range: As for `quantize_weight`.

    Returns:
        Other codes, with their error.
    """
    most = 63 if reduce_range else 127
    rows = np.moveaxis(weight, axis, 0)
    flat = rows.reshape(len(rows), -1)
    scale = np.broadcast_to(rounded.scale.astype(np.float64), len(rows))[:, None]
    codes = round_in_order(flat, scale, covariance, lambda x: np.clip(np.rint(x), -most, most))
    shaped = np.moveaxis(codes.reshape(rows.shape), 0, axis)
    error = float(np.square(codes * scale - flat).sum())
    return dataclasses.replace(rounded, codes=np.ascontiguousarray(shaped, np.int8), error=error, method="gptq")


def round_in_order(
    rows: npt.NDArray[np.floating],
    scales: npt.NDArray[np.floating],
    covariance: Doubles,
    nearest: Nearest,
    offsets: npt.NDArray[np.integer] | int = 0,
) -> Floats:
    """Round weights to (number - offset) * scale.

    Args:
        rows: [N, K], the weights of N output channels.
        scales: [N, K] or [N, 1]; where one is 0, so are the weights.
        covariance: [G, K, K] of the inputs of G groups of N / G channels each.
        nearest: How to round.
        offsets: [N, K], or one for all.

    Returns:
        [N, K], the numbers, which float32 has to hold.
    """
    groups, size = covariance.shape[:2]
    order = np.argsort(-np.einsum("gkk->k", covariance), kind="stable")
    upper = _factor(covariance[:, order[:, None], order])
    upper /= np.einsum("gkk->gk", upper)[..., None]
    given = [np.broadcast_to(each, rows.shape).reshape(groups, -1, size) for each in (rows, scales, offsets)]
    found = np.empty((groups, len(rows) // groups, size), np.float32)
    step = max(1, _MOST_WEIGHTS // (groups * size))
    for part in (slice(begin, begin + step) for begin in range(0, found.shape[1], step)):
        left, scale, offset = (each[:, part, order].astype(np.float64) for each in given)
        found[:, part, order] = _round(left, scale, offset, upper, nearest)
    return found.reshape(rows.shape)


def _round(left: Doubles, scale: Doubles, offset: Doubles, upper: Doubles, nearest: Nearest) -> Doubles:
    """Numbers [G, n, K] for weights of that shape."""
    size = left.shape[-1]
    numbers, lost = np.empty_like(left), np.empty_like(left)
    for begin in range(0, size, _BLOCK):
        end = min(begin + _BLOCK, size)
        for k in range(begin, end):
            unit, zero = scale[..., k], offset[..., k]
            numbers[..., k] = nearest(np.divide(left[..., k], unit, out=np.zeros_like(unit), where=unit != 0) + zero)
            lost[..., k] = left[..., k] - (numbers[..., k] - zero) * unit
            left[..., k + 1 : end] -= lost[..., k, None] * upper[:, None, k, k + 1 : end]
        left[..., end:] -= lost[..., begin:end] @ upper[:, begin:end, end:]
    return numbers


def _factor(covariance: Doubles) -> Doubles:
    """U of the inverse, [G, K, K]: R^-1 where H = R R' with R upper triangular, lower in reversed order."""
    damping = _DAMPING * np.einsum("gkk->g", covariance) / covariance.shape[-1]
    damping = np.where(damping > 0, damping, 1.0)
    damped = covariance + damping[:, None, None] * np.eye(covariance.shape[-1])
    factor: Doubles = np.linalg.inv(np.linalg.cholesky(damped[:, ::-1, ::-1])[:, ::-1, ::-1])
    return factor
