"""A product of low rank that gives a rounded weight back a part of what rounding took from it.

Of outputs W x with rounded weights Q, a product B A of rank r is added to Q, so that with R = E[x x'] the error

    E |W x - (Q + B A) x|^2  =  |(W - Q - B A) S'|^2,    S' S = R,

is least. With V the r leading left singular vectors of E S', E = W - Q, the best B A S' is V V' E S' (Eckart and Young
1936), so

    B = V,    A = V' E.

That is QERA-exact (Zhang et al. 2024, arXiv 2410.06040, Theorem 1), whose R^(-1/2) SVD_r(R^(1/2) E') is the same
product; written so nothing is divided by R, which may be singular. Without data R is the identity, and the product the
truncated SVD of LoRC (Yao et al. 2023, ZeroQuant-V2, arXiv 2303.08302, section 5). V comes from the smaller of the
matrices E R E' [N, N] and S E' E S' [K, K].
"""

from __future__ import annotations

import dataclasses

import numpy as np

from .blas import one_thread_each
from .gptq import Doubles, damped
from .input_moments import Matrices
from .quantized_weight import Floats, QuantizedWeight
from .round_weight import round_weight
from .schemes import WeightScheme

_ROWS = 1 << 13
"""Output channels that are in memory as float64 at a time."""
_LEAST = 1e-12
"""Of the largest squared singular value: directions below are noise of the arithmetic."""


@dataclasses.dataclass(frozen=True)
class LowRank:
    """B A, both rounded.

    Attributes:
        inner: A' [K, r], of r output channels.
        outer: B' [r, N], of N output channels.
    """

    inner: QuantizedWeight
    outer: QuantizedWeight

    @property
    def rank(self) -> int:
        """That of the product, r."""
        return self.outer.K

    def rows(self, channels: slice = slice(None)) -> Floats:
        """What is added to some output channels [n, K]."""
        added: Floats = self.outer.part(channels).rows() @ self.inner.rows()
        return added


@dataclasses.dataclass(frozen=True)
class CompensatedWeight:
    """A rounded weight with a product of low rank beside it."""

    weight: QuantizedWeight
    low_rank: LowRank

    def part(self, channels: slice) -> CompensatedWeight:
        """That of some output channels."""
        outer = self.low_rank.outer.part(channels)
        return CompensatedWeight(self.weight.part(channels), dataclasses.replace(self.low_rank, outer=outer))

    def rows(self) -> Floats:
        """What both stand for together, [N, K]."""
        rows = self.weight.rows()
        rows += self.low_rank.rows()
        return rows


def fit_low_rank(error: Floats, rank: int, second: Matrices | None = None) -> tuple[Floats, Floats]:
    """The product B A of least expected error.

    Args:
        error: E = W - Q, [N, K].
        rank: r, 1 to min(K, N).
        second: R, [K, K]; None for the identity. Where N > K it is damped as for GPTQ, else taken as it is.

    Returns:
        A' [K, r] and B' [r, N]. They do not depend on the number of threads.

    Raises:
        ValueError: There is no product of this rank.
    """
    N, K = error.shape
    if not 1 <= rank <= min(K, N):
        raise ValueError(f"rank {rank} of a weight of {N} outputs and {K} inputs")
    with one_thread_each():
        leading = _of_outputs(error, rank, second) if N <= K else _of_inputs(error, rank, second)
        inner = sum(np.float64(error[part]).T @ leading[part] for part in _parts(N))
    return np.ascontiguousarray(inner, np.float32), np.ascontiguousarray(leading.T, np.float32)


def round_low_rank(inner: Floats, outer: Floats, schemes: tuple[WeightScheme, WeightScheme]) -> LowRank:
    """Factors A' [K, r] and B' [r, N] rounded by a scheme each."""
    return LowRank(round_weight(inner, 1, schemes[0]), round_weight(outer, 1, schemes[1]))


def _of_outputs(error: Floats, rank: int, second: Matrices | None) -> Doubles:
    """V [N, r] from E R E' [N, N]."""
    wide = error.astype(np.float64)
    vectors, _ = _leading((wide if second is None else wide @ second.astype(np.float64)) @ wide.T, rank)
    return vectors


def _of_inputs(error: Floats, rank: int, second: Matrices | None) -> Doubles:
    """V [N, r] from S E' E S' [K, K]: what E S' makes of its eigenvectors, at length 1."""
    N, K = error.shape
    root: Doubles = np.eye(K) if second is None else np.linalg.cholesky(damped(second[None])[0])  # S'
    gram: Doubles = np.zeros((K, K))
    for part in _parts(N):
        wide = error[part].astype(np.float64)
        gram += wide.T @ wide
    vectors, squares = _leading(root.T @ gram @ root, rank)
    lengths = np.sqrt(np.maximum(squares, 0))
    shares = np.divide(1, lengths, out=np.zeros_like(lengths), where=squares > _LEAST * squares.max(initial=0))
    seen = root @ (vectors * shares)
    return np.concatenate([np.float64(error[part]) @ seen for part in _parts(N)])


def _leading(symmetric: Doubles, rank: int) -> tuple[Doubles, Doubles]:
    """The eigenvectors [n, r] of the largest eigenvalues [r], each with its largest number positive."""
    values, vectors = np.linalg.eigh((symmetric + symmetric.T) / 2)
    vectors = vectors[:, : -rank - 1 : -1]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    return vectors * np.where(largest < 0, -1.0, 1.0), values[: -rank - 1 : -1]


def _parts(N: int) -> list[slice]:
    return [slice(begin, begin + _ROWS) for begin in range(0, N, _ROWS)]
