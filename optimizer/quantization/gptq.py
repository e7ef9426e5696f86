"""Rounding of a weight that lets inputs not yet rounded make up for what was lost on others.

With inputs of covariance H the error of a product is the sum over its outputs of (q - w)' H (q - w). Inputs are rounded
one after the other, those that vary most first; what rounding input k changed, d = w_k - q_k, moves the others to where
the error is least:

    w_j += d U_kj / U_kk   for j > k,   H^-1 = U' U with U upper triangular

(Frantar et al. 2023, GPTQ, equations 2 and 3 in Cholesky form, in blocks; after Hassibi & Stork 1993). H is taken about
the mean where the mean of the error goes into a bias.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .blas import one_thread_each, pool, product

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Nearest = Callable[[Floats], Floats]
"""Numbers of any shape -> those that there are next to them."""

_DAMPING = 0.01
"""Of the mean of the diagonal, added to it, so that the inverse exists (GPTQ, section 3.3)."""
_BLOCK = 64
"""Inputs whose changes reach those behind the block in one product of matrices."""
_CHANNELS = 1024
"""Outputs rounded at a time: their part of a block stays in the caches."""
_INVERTED = 128
"""Rows of a triangular matrix that are inverted at once."""


class InOrder:
    """The order of the inputs of G groups of output channels, and how they make up for each other.

    Args:
        covariance: [G, K, K] of the inputs.
    """

    def __init__(self, covariance: npt.NDArray[np.floating]) -> None:
        self._order = np.argsort(-np.einsum("gkk->k", covariance, dtype=np.float64), kind="stable")
        upper = inverse_factor(covariance[:, self._order[:, None], self._order])
        diagonal = np.einsum("gkk->gk", upper).copy()
        upper /= diagonal[..., None]
        self._factor = upper.astype(np.float32)
        self._squares = np.square(diagonal)  # of float64: of very small inputs they are beyond float32

    def solve(self, rows: Floats) -> Floats:
        """The rows [G, n, K] times the inverse of the damped covariance of their group."""
        halfway = product(rows[:, :, self._order], self._factor.transpose(0, 2, 1)) * self._squares[:, None]
        halfway = halfway.astype(np.float32)
        found = np.empty_like(rows)
        found[:, :, self._order] = product(halfway, self._factor)
        return found

    def round(
        self, rows: Floats, scales: Floats, nearest: Nearest, offsets: Floats | None = None, block_size: int = 0
    ) -> Floats:
        """Round weights to (number - offset) * scale.

        Args:
            rows: [N, K], the weights of N / G output channels of each group.
            scales: [N, blocks]; where one is 0, so are the weights.
            nearest: How to round.
            offsets: [N, blocks]; 0 by default.
            block_size: Inputs of a block; 0 where one has all of them.

        Returns:
            [N, K], the numbers, which float32 has to hold. They do not depend on the number of threads.
        """
        groups, size = self._factor.shape[:2]
        units = scales.reshape(groups, -1, scales.shape[1]).transpose(0, 2, 1)
        zeros = np.zeros_like(scales) if offsets is None else offsets
        zeros = zeros.reshape(groups, -1, scales.shape[1]).transpose(0, 2, 1)
        block_of = self._order // (block_size or size)
        given, found = rows.reshape(groups, -1, size), np.empty((groups, len(rows) // groups, size), np.float32)
        step = max(1, _CHANNELS // groups)

        def run(begin: int) -> None:
            part = slice(begin, begin + step)
            left = np.ascontiguousarray(given[:, part, self._order].transpose(0, 2, 1), np.float32)
            numbers = _round(left, units[:, :, part], zeros[:, :, part], block_of, self._factor, nearest)
            found[:, part, self._order] = numbers.transpose(0, 2, 1)

        with pool() as workers:
            list(workers.map(run, range(0, found.shape[1], step)))
        return found.reshape(rows.shape)


def _round(
    left: Floats, units: Floats, zeros: Floats, block_of: npt.NDArray[np.intp], factor: Floats, nearest: Nearest
) -> Floats:
    """Numbers [G, K, n] for weights of that shape, which are overwritten."""
    numbers, lost = np.empty_like(left), np.empty_like(left)
    for begin in range(0, len(block_of), _BLOCK):
        end = min(begin + _BLOCK, len(block_of))
        for k in range(begin, end):
            unit, zero = units[:, block_of[k]], zeros[:, block_of[k]]
            scaled = np.divide(left[:, k], unit, out=np.zeros_like(left[:, k]), where=unit != 0)
            numbers[:, k] = nearest(scaled + zero)
            lost[:, k] = left[:, k] - (numbers[:, k] - zero) * unit
            left[:, k + 1 : end] -= factor[:, k, k + 1 : end, None] * lost[:, None, k]
        left[:, end:] -= factor[:, begin:end, end:].transpose(0, 2, 1) @ lost[:, begin:end]
    return numbers


def inverse_factor(covariance: npt.NDArray[np.floating]) -> Doubles:
    """U of the inverse of a damped H, [G, K, K]: R^-1, where H = R R' and R is lower triangular in reversed order.

    It does not depend on the number of threads.
    """
    with one_thread_each():
        lower = np.linalg.cholesky(damped(covariance)[:, ::-1, ::-1])
        factor: Doubles = _inverse(lower)[:, ::-1, ::-1]
    return factor


def damped(covariance: npt.NDArray[np.floating]) -> Doubles:
    """H [G, K, K] with so much on its diagonal that it is positive definite."""
    damping = _DAMPING * np.einsum("gkk->g", covariance, dtype=np.float64) / covariance.shape[-1]
    damping = np.where(damping > 0, damping, 1.0)
    result: Doubles = covariance.astype(np.float64)
    np.einsum("gkk->gk", result)[...] += damping[:, None]
    return result


def _inverse(lower: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Of lower triangular matrices [G, K, K], by halves."""
    size = lower.shape[-1]
    if size <= _INVERTED:
        small: npt.NDArray[Any] = np.linalg.inv(lower)
        return small
    half = size // 2
    above, below = _inverse(lower[:, :half, :half]), _inverse(lower[:, half:, half:])
    inverse = np.zeros_like(lower)
    inverse[:, :half, :half], inverse[:, half:, half:] = above, below
    np.negative(product(below, product(lower[:, half:, :half], above)), out=inverse[:, half:, :half])
    return inverse
