"""Outlier channels of activations go into the weights that read them: SmoothQuant.

    X W = (X / s) (s W),   s_k = max|X_k|^alpha / max|W_k|^(1 - alpha)

(Xiao et al. 2022, arXiv:2211.10438, equation 4). An activation has one scale for all channels, so one channel of
outliers costs all others their steps; a weight has one scale an output channel, so the factors s of the channels that
it reads cost it less. How far to go is measured for each tensor: the error of alpha is, from the statistics alone,

    E = sum_k e_k |s W|_k^2 + tr(R' G R) / rows,   R = (round(s W) - s W) / s

with e the mean squared errors of the channels of X / s, see `quantization.noise`, and G = X'X its Gram matrix, or its
diagonal where there is no more. Products that read one
tensor share s. Where nothing can divide the tensor, a Mul by 1 / s may.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..quantization.noise import IntegerNoise, Noise
from .absorb_scale import Doubles, Operand, Reader, find_makers
from .equalize_channels import balanced
from .int8_operators import Operator, understand
from .rewriting import add_array, insert_before

_ALPHAS = tuple(round(0.1 * step, 1) for step in range(1, 10))
_COLUMNS = 256
"""Output channels, evenly spread over a weight, that an error is measured on."""
_WORTH = 0.9
"""An error that is not below this share of the old one is no reason to touch weights,"""
_WORTH_A_NODE = 0.6
"""and this one none to spend a Mul."""


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


@dataclasses.dataclass(frozen=True)
class Smoothed:
    """What was done to a tensor.

    Attributes:
        alpha: Of the paper's equation 4.
        error: Expected squared error of its products, as a share of what it was.
        scale: float64 [K], what its channels were divided by.
        inserted: Whether by a Mul of its own.
    """

    alpha: float
    error: float
    scale: Doubles
    inserted: bool


class SmoothMatMul:
    """Smooth the tensors that MatMul and Gemm nodes with constant weights read.

    Cases: a tensor that only these read and that a norm, an Add or Mul by a vector, or a linear node makes, whose
    constants are divided; with `insert` any other tensor that float operators make, by a Mul. Left: tensors without
    statistics, with little to gain, and those that come in codes, which a Mul would have to round a second time.

    Statistics of before are not those of the new model.

    Args:
        statistics: By name of the tensor, with channels along its last axis.
        insert: Spend a Mul where nothing absorbs the scale.
        noise: Of what the tensors are rounded to.

    Attributes:
        smoothed: By name of the tensor.
        left: By name of the reading node, why it was left.
    """

    def __init__(
        self, statistics: Mapping[str, ChannelStatistics], insert: bool = False, noise: Noise | None = None
    ) -> None:
        self.smoothed: dict[str, Smoothed] = {}
        self.left: dict[str, str] = {}
        self._statistics = statistics
        self._insert = insert
        self._noise = noise or IntegerNoise()

    def __call__(self, model: ir.Model) -> bool:
        """Rewrite weights; whether anything changed."""
        for value, readers in _groups(model).items():
            reason = self._smooth(value, readers)
            if reason is not None:
                self.left.update((reader.node.name or reader.node.op_type, reason) for reader in readers)
        return bool(self.smoothed)

    def _smooth(self, value: ir.Value, readers: list[Reader]) -> str | None:
        statistics = self._statistics.get(value.name or "")
        K = readers[0].channels
        if statistics is None or statistics.channel_absmax is None:
            return "no statistics of its input"
        if statistics.channel_absmax.shape != (K,) or not np.isfinite(statistics.channel_absmax).all():
            return "the statistics of its input are not finite numbers, one a channel"
        makers = _makers(value, readers, self._insert)
        if isinstance(makers, str):
            return makers
        alpha, scale, error = _Model(statistics, readers, self._noise).best()
        if error > (_WORTH if makers else _WORTH_A_NODE):
            return "little to gain"
        if makers:
            _divide(makers, scale)
        else:
            _insert_mul(value, [reader.node for reader in readers], scale)
        for reader in readers:
            reader.multiply(scale)
        self.smoothed[value.name or ""] = Smoothed(alpha, error, scale, not makers)
        return None


def smoothable(model: ir.Model, insert: bool = False) -> set[str]:
    """Names of the tensors that `SmoothMatMul` would smooth if that gains: those whose Gram matrix it would read."""
    return {
        value.name or ""
        for value, readers in _groups(model).items()
        if not isinstance(_makers(value, readers, insert), str)
    }


def _groups(model: ir.Model) -> dict[ir.Value, list[Reader]]:
    """The products with constant weights that read each tensor."""
    groups: dict[ir.Value, list[Reader]] = {}
    for node in model.graph:
        if node.op_type in ("MatMul", "Gemm") and node.inputs[0] is not None:
            reader = Reader.read(node)
            if reader is not None:
                groups.setdefault(node.inputs[0], []).append(reader)
    return groups


def _makers(value: ir.Value, readers: list[Reader], insert: bool) -> list[Operand] | str:
    """The constants that absorb a scale, none where a Mul is to, or why neither is possible."""
    makers = find_makers(value, [reader.node for reader in readers], readers[0].channels)
    if not isinstance(makers, str) or not insert:
        return makers
    producer = value.producer()
    if producer is not None and isinstance(understand(producer), Operator):
        return "its input may come in codes, which a Mul would round again"
    return []


def _divide(makers: list[Operand], scale: Doubles) -> None:
    for maker in makers:
        maker.multiply(1 / scale)


def _insert_mul(value: ir.Value, nodes: list[ir.Node], scale: Doubles) -> None:
    graph = nodes[0].graph
    assert isinstance(graph, ir.Graph)
    factors = add_array(graph, f"{value.name}_smoothing", (1 / scale).astype(np.float32))
    divided = insert_before(nodes[0], "Mul", [value, factors], value, suffix="_smooth")
    for node in nodes:
        node.replace_input_with(0, divided)


class _Model:
    """The error that rounding leaves in the products of one tensor."""

    def __init__(self, statistics: ChannelStatistics, readers: list[Reader], noise: Noise) -> None:
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
        extreme = max(abs(statistics.low), abs(statistics.high))
        self._sides = (max(statistics.high, 0.0) - min(statistics.low, 0.0)) / extreme if extreme > 0 else 1.0
        self._gram = self._mean_gram(statistics)
        self._squares: Doubles = self._gram.diagonal() if self._gram.ndim == 2 else self._gram
        self._noise = noise

    def _mean_gram(self, statistics: ChannelStatistics) -> Doubles:
        """X'X of a row in the mean, [K, K], or its diagonal alone, [K]."""
        if statistics.gram is not None and statistics.rows > 0:
            gram: Doubles = np.asarray(statistics.gram, np.float64) / statistics.rows
            return gram
        if statistics.channel_mean is not None and statistics.channel_std is not None:
            moments: Doubles = np.square(np.asarray(statistics.channel_mean, np.float64)) + np.square(
                statistics.channel_std
            )
            return moments
        return np.square(self._absmax / 3)

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
        noise = self._noise.of_activation(self._absmax / scale, self._squares / scale**2, self._sides)
        wrong = self._noise.of_weight(weight) / scale[:, None]
        seen = self._gram @ wrong if self._gram.ndim == 2 else self._gram[:, None] * wrong
        of_weight = (wrong * seen).sum(axis=0)
        of_activation = noise @ np.square(weight, dtype=np.float64)
        return float((of_weight + of_activation) @ self._stands_for)


def _lifted(ranges: npt.NDArray[Any]) -> Doubles:
    """Ranges of channels, those of dead ones as small as matters."""
    floor = max(float(ranges.max(initial=0)) * 1e-4, 1e-30)
    lifted: Doubles = np.maximum(ranges.astype(np.float64), floor)
    return lifted
