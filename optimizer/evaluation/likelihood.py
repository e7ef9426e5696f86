"""What logits say of the tokens that follow, in float64 and a few rows at a time: a vocabulary may be 150,000 wide."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

_PIECE = 1 << 22
"""Numbers that are looked at together."""

Logits = npt.NDArray[np.floating[Any]]


def surprise(logits: Logits, tokens: npt.NDArray[np.int64]) -> float:
    """The sum of -log q of tokens, in nats.

    Args:
        logits: Of each token, [tokens, vocabulary]; log q(v) = x[v] - log sum exp(x).
        tokens: The numbers of those that came.
    """
    return float(sum(_surprise(x, found, _log_sum(x)).sum() for x, found in _pieces(logits, tokens)))


@dataclasses.dataclass(frozen=True)
class Divergence:
    """How far predictions are from a reference's, summed over tokens.

    Attributes:
        nats: Sum of the Kullback-Leibler divergences sum_v p(v) (log p(v) - log q(v)), p being the reference's.
        same: How many tokens have the same most likely one in both.
        reference_surprise: As `surprise`, of the reference.
        surprise: The same of what is judged.
    """

    nats: float = 0.0
    same: int = 0
    reference_surprise: float = 0.0
    surprise: float = 0.0

    def __add__(self, other: Divergence) -> Divergence:
        return Divergence(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


def divergence(reference: Logits, judged: Logits, tokens: npt.NDArray[np.int64]) -> Divergence:
    """That of two models' predictions of the same tokens, both [tokens, vocabulary]."""
    total = Divergence()
    for (x, found), (y, _) in zip(_pieces(reference, tokens), _pieces(judged, tokens), strict=True):
        sums = _log_sum(x), _log_sum(y)
        logs = x - sums[0][:, np.newaxis]
        p = np.exp(logs)
        with np.errstate(invalid="ignore"):
            terms = p * (logs - (y - sums[1][:, np.newaxis]))
        nats = np.where(p == 0, 0, terms).sum()  # p log p is 0 where p is
        same = (x.argmax(axis=1) == y.argmax(axis=1)).sum()
        own, other = _surprise(x, found, sums[0]).sum(), _surprise(y, found, sums[1]).sum()
        total += Divergence(float(nats), int(same), float(own), float(other))
    return total


def _pieces(
    logits: Logits, tokens: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]]:
    rows = max(1, _PIECE // logits.shape[1])
    for begin in range(0, len(tokens), rows):
        yield logits[begin : begin + rows].astype(np.float64), tokens[begin : begin + rows]


def _log_sum(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Log sum exp of each row, NaN where a number is NaN or infinite."""
    most = x.max(axis=1)
    with np.errstate(invalid="ignore"):
        found: npt.NDArray[np.float64] = most + np.log(np.exp(x - most[:, np.newaxis]).sum(axis=1))
    return found


def _surprise(
    x: npt.NDArray[np.float64], tokens: npt.NDArray[np.int64], log_sum: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = log_sum - x[np.arange(len(tokens)), tokens]
    return found
