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

import numpy as np
import numpy.typing as npt

from .affine import QuantizedTensor

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_DAMPING = 0.01
"""Of the mean of the diagonal, added to it, so that the inverse exists (GPTQ, section 3.3)."""
_BLOCK = 64
"""Inputs whose changes reach those behind the block in one product of matrices."""


def compensate(
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
    grouped = rows.reshape(len(covariance), -1, covariance.shape[-1]).astype(np.float64)
    scale = np.broadcast_to(rounded.scale.astype(np.float64), len(rows)).reshape(*grouped.shape[:2], 1)
    codes = _round(grouped, scale, covariance, most)
    shaped = np.moveaxis(codes.reshape(rows.shape), 0, axis)
    error = float(np.square(codes * scale - grouped).sum())
    return dataclasses.replace(rounded, codes=np.ascontiguousarray(shaped, np.int8), error=error)


def _round(left: Doubles, scale: Doubles, covariance: Doubles, most: int) -> Doubles:
    """Codes [G, n, K] of weights of that shape."""
    size = left.shape[-1]
    order = np.argsort(-np.einsum("gkk->k", covariance), kind="stable")
    left = left[..., order]
    upper = _factor(covariance[:, order[:, None], order])
    upper /= np.einsum("gkk->gk", upper)[..., None]
    codes, lost = np.empty_like(left), np.empty_like(left)
    for begin in range(0, size, _BLOCK):
        end = min(begin + _BLOCK, size)
        for k in range(begin, end):
            codes[..., k] = np.clip(np.rint(left[..., k] / scale[..., 0]), -most, most)
            lost[..., k] = left[..., k] - codes[..., k] * scale[..., 0]
            left[..., k + 1 : end] -= lost[..., k, None] * upper[:, None, k, k + 1 : end]
        left[..., end:] -= lost[..., begin:end] @ upper[:, begin:end, end:]
    found = np.empty_like(codes)
    found[..., order] = codes
    return found


def _factor(covariance: Doubles) -> Doubles:
    """U of the inverse, [G, K, K]: R^-1 where H = R R' with R upper triangular, lower in reversed order."""
    damping = _DAMPING * np.einsum("gkk->g", covariance) / covariance.shape[-1]
    damping = np.where(damping > 0, damping, 1.0)
    damped = covariance + damping[:, None, None] * np.eye(covariance.shape[-1])
    factor: Doubles = np.linalg.inv(np.linalg.cholesky(damped[:, ::-1, ::-1])[:, ::-1, ::-1])
    return factor
