"""The error that rounding leaves in the products of one tensor, smoothed by one alpha or another."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..quantization.noise import Noise
from .absorb_scale import Doubles, Reader
from .equalize_channels import balanced

_ALPHAS = tuple(round(0.1 * step, 1) for step in range(1, 10))
_COLUMNS = 256
"""Output channels, evenly spread over a weight, that an error is measured on."""


class ChannelStatistics(Protocol):
    """What is read of the statistics of a tensor along its last axis."""

    @property
    def low(self) -> float: ...  # noqa: D102

    @property
    def high(self) -> float: ...  # noqa: D102

    @property
    def channel_absmax(self) -> npt.NDArray[Any] | None: ...  # noqa: D102

    @property
    def channel_mean(self) -> npt.NDArray[Any] | None: ...  # noqa: D102

    @property
    def channel_std(self) -> npt.NDArray[Any] | None: ...  # noqa: D102

    @property
    def gram(self) -> npt.NDArray[Any] | None: ...  # noqa: D102

    @property
    def rows(self) -> int: ...  # noqa: D102


class SmoothingError:
    """The error of one tensor's products, see `smooth_matmul`.

    Args:
        statistics: Of the tensor.
        between: Of those that are divided with it; None of one that is not rounded.
        readers: Its products.
        noise: Of what the tensors are rounded to.
    """

    def __init__(
        self, statistics: ChannelStatistics, between: Sequence[ChannelStatistics | None], readers: list[Reader],
        noise: Noise,
    ) -> None:  # fmt: skip
        matrices = [reader.weight if reader.axis == 1 else reader.weight.T for reader in readers]
        self._input_ranges = _lifted(np.max([reader.input_ranges() for reader in readers], axis=0))
        self._absmax = np.asarray(statistics.channel_absmax, np.float64)
        self._ranges = _lifted(self._absmax)
        # [K, columns], each column standing for as many as were passed over.
        picked = [matrix[:, :: max(1, matrix.shape[1] // _COLUMNS)] for matrix in matrices]
        stands_for = [
            np.full(part.shape[1], matrix.shape[1] / part.shape[1])
            for part, matrix in zip(picked, matrices, strict=True)
        ]
        self._weight: npt.NDArray[np.float32] = np.concatenate(picked, axis=1)
        self._stands_for = np.concatenate(stands_for)
        self._gram = _mean_gram(statistics)
        squares: Doubles = self._gram.diagonal() if self._gram.ndim == 2 else self._gram
        whole = _Rounded(self._absmax, squares, _sides(statistics), np.ones_like(squares))
        self._rounded = [whole, *_others(between, squares)]
        self._noise = noise

    def best(self) -> tuple[float, Doubles, float]:
        """alpha, its scale, and its error as a share of that without."""
        none = self._error(np.ones_like(self._ranges))
        if not none > 0:
            return 0.0, np.ones_like(self._ranges), 1.0
        tried = []
        for alpha in _ALPHAS:
            scale = balanced(self._ranges**alpha / self._input_ranges ** (1 - alpha))
            tried.append((self._error(scale) / none, alpha, scale))
        error, alpha, scale = min(tried, key=lambda candidate: candidate[0])
        return alpha, scale, error

    def _error(self, scale: Doubles) -> float:
        weight = (self._weight * scale[:, None]).astype(np.float32)
        noises = [
            self._noise.of_activation(tensor.absmax / scale, tensor.squares / scale**2, tensor.sides) * tensor.reaching
            for tensor in self._rounded
        ]
        noise: Doubles = np.sum(noises, axis=0)
        wrong = self._noise.of_weight(weight) / scale[:, None]
        seen = self._gram @ wrong if self._gram.ndim == 2 else self._gram[:, None] * wrong
        of_weight = (wrong * seen).sum(axis=0)
        of_activation = noise @ np.square(weight, dtype=np.float64)
        return float((of_weight + of_activation) @ self._stands_for)


@dataclasses.dataclass(frozen=True)
class _Rounded:
    """A tensor that is divided and rounded.

    Attributes:
        absmax: [K], largest magnitudes of its channels.
        squares: [K], their mean squares.
        sides: As in `Noise`.
        reaching: [K], the part of its squared error that reaches the products.
    """

    absmax: Doubles
    squares: Doubles
    sides: float
    reaching: Doubles


def _others(between: Sequence[ChannelStatistics | None], squares: Doubles) -> Iterator[_Rounded]:
    """Those of other tensors that are rounded and so have statistics; `squares`: mean ones of the one that is read."""
    for statistics in between:
        if statistics is None or statistics.channel_absmax is None or statistics.channel_absmax.shape != squares.shape:
            continue
        own = _moments(statistics)
        reaching = np.divide(squares, own, out=np.zeros_like(squares), where=own > 0)
        yield _Rounded(np.asarray(statistics.channel_absmax, np.float64), own, _sides(statistics), reaching)


def _sides(statistics: ChannelStatistics) -> float:
    extreme = max(abs(statistics.low), abs(statistics.high))
    return (max(statistics.high, 0.0) - min(statistics.low, 0.0)) / extreme if extreme > 0 else 1.0


def _mean_gram(statistics: ChannelStatistics) -> Doubles:
    """X'X of a row in the mean, [K, K], or its diagonal alone, [K]."""
    if statistics.gram is None or statistics.rows == 0:
        return _moments(statistics)
    gram: Doubles = np.asarray(statistics.gram, np.float64) / statistics.rows
    return gram


def _moments(statistics: ChannelStatistics) -> Doubles:
    """[K], mean squares of channels."""
    mean, deviation = statistics.channel_mean, statistics.channel_std
    if mean is None or deviation is None:
        return np.square(np.asarray(statistics.channel_absmax, np.float64) / 3)
    moments: Doubles = np.square(np.asarray(mean, np.float64)) + np.square(deviation)
    return moments


def _lifted(ranges: npt.NDArray[Any]) -> Doubles:
    """Ranges of channels, those of dead ones as small as matters."""
    floor = max(float(ranges.max(initial=0)) * 1e-4, 1e-30)
    lifted: Doubles = np.maximum(ranges.astype(np.float64), floor)
    return lifted
