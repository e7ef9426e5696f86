"""Outlier channels of activations go into the weights that read them: SmoothQuant.

    X W = (X / s) (s W),   s_k = max|X_k|^alpha / max|W_k|^(1 - alpha)

(Xiao et al. 2022, arXiv:2211.10438, equation 4). An activation has one scale for all channels, so one channel of
outliers costs all others their steps; a weight has one scale an output channel, so the factors s of the channels that
it reads cost it less. How far to go is measured for each tensor: the error of alpha is, from the statistics alone,

    E = sum_k e_k |s W|_k^2 + tr(R' G R) / rows,   R = (round(s W) - s W) / s

with e the mean squared errors of the channels of X / s, see `quantization.noise`, and G = X'X its Gram matrix, or its
diagonal where there is no more. Tensors between X and the constants that divide it are divided, too, and some of them
are rounded: of each such Y, e gets in channel k the error of Y / s times mean X_k^2 / mean Y_k^2, the part of it that
reaches X through a Relu, say. Products that read one tensor share s. Where nothing can divide the tensor, a Mul by
1 / s may.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ..graph.rewriting import add_array, insert_before
from ..planning.int8_operators import Operator, understand
from ..quantization.noise import IntegerNoise, Noise
from .absorb_scale import Doubles, Operand, Reader, find_makers, moved_through, products_by_input
from .base import GraphPass
from .smoothing_error import ChannelStatistics, SmoothingError

_WORTH = 0.9
"""An error that is not below this share of the old one is no reason to touch weights,"""
_WORTH_A_NODE = 0.6
"""and this one none to spend a Mul."""


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


class SmoothMatMul(GraphPass):
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
        self._statistics = statistics
        self._insert = insert
        self._noise = noise or IntegerNoise()

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite weights; whether anything changed."""
        for value, readers in products_by_input(model).items():
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
        between = [
            self._statistics.get(each.name or "") for each in (moved_through(value, makers)[1:] if makers else [])
        ]
        alpha, scale, error = SmoothingError(statistics, between, readers, self._noise).best()
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


def smoothable(model: ir.Model, insert: bool = False) -> dict[str, list[str]]:
    """What `SmoothMatMul` would smooth if that gains.

    Returns:
        By name of the tensor, whose Gram matrix it would read, the names of those that change with it, whose channels
        it would read.
    """
    found = {}
    for value, readers in products_by_input(model).items():
        makers = _makers(value, readers, insert)
        if not isinstance(makers, str):
            moved = moved_through(value, makers)[1:] if makers else []
            found[value.name or ""] = [each.name or "" for each in moved]
    return found


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
