"""Channels between two layers get the same range: cross-layer equalization.

    y = W2 f(W1 x + b1),   f(s y) = s f(y) for s > 0

is the same for W1 / s, b1 / s and W2 s, whatever s > 0 a channel. Rounding is not: one scale a tensor is wasted on
channels of a small range. With r1 the range of a channel and r2 that of the weights that read it,

    s = sqrt(r1 / r2)

makes both sqrt(r1 r2) (Nagel et al. 2019, arXiv:1906.04721, section 4.1, equation 11). r1 is that of the activation
where statistics have it: weights have a scale an output channel, so it is the activation that has one for all, and r2
counts what a weight is beside the largest of its output channel. A depthwise Conv has a scale for every channel it
reads, r2 = r1: there s = r1 makes all channels of the activation alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..graph.matching import fixed
from .absorb_scale import Doubles, Operand, Reader, find_makers
from .base import GraphPass

_SWEEPS = 10
_SETTLED = 0.01
"""A sweep that changes no scale by more than this share ends the work."""
_MOST = 64.0
"""A channel that needs more is all but dead on the calibration data; to blow it up only risks other data."""


class HasRanges(Protocol):
    """What is read of the statistics of a tensor."""

    @property
    def channel_absmax(self) -> npt.NDArray[Any] | None: ...  # noqa: D102


class EqualizeChannels(GraphPass):
    """Equalize the channels between Conv and Gemm nodes.

    Cases: one maker, Conv or Gemm, also depthwise, and one or several readers; between them nothing, Relu, LeakyRelu,
    a Clip from 0 up, pools, an Add or Mul by a constant. Left: tensors that something else reads too, Clips to other
    bounds, makers that cannot take a scale. What the model computes stays the same but for rounding of float32; ranges
    do not: statistics of before are of another model.

    Args:
        statistics: Of activations, by name; those that lack count with the ranges of the weights that make them.

    Attributes:
        equalized: By name of the tensor between, what its channels were divided by.
        left: By name of the reading node, why it was left.
    """

    def __init__(self, statistics: Mapping[str, HasRanges] | None = None) -> None:
        self.equalized: dict[str, Doubles] = {}
        self._statistics = statistics or {}

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite weights; whether anything changed."""
        pairs = self._find(model)
        for _ in range(_SWEEPS):
            if max((self._equalize(value, *pair) for value, pair in pairs.items()), default=0.0) < _SETTLED:
                break
        return bool(self.equalized)

    def _find(self, model: ir.Model) -> dict[ir.Value, tuple[list[ir.Node], list[Operand]]]:
        readers: dict[ir.Value, list[ir.Node]] = {}
        for node in model.graph:
            if node.op_type in ("Conv", "Gemm") and Reader.read(node) is not None and node.inputs[0] is not None:
                readers.setdefault(node.inputs[0], []).append(node)
        found = {}
        for value, nodes in readers.items():
            first = _reader(nodes[0])
            makers = find_makers(value, nodes, first.channels, first.trailing)
            if not isinstance(makers, str) and makers[0].node.op_type not in ("Conv", "Gemm"):
                makers = f"{makers[0].node.op_type} makes the tensor"
            if isinstance(makers, str):
                self.left.update((node.name or node.op_type, makers) for node in nodes)
            else:
                found[value] = (nodes, makers)
        return found

    def _equalize(self, value: ir.Value, nodes: list[ir.Node], makers: list[Operand]) -> float:
        """Scale the channels of one tensor; by how much, as a share."""
        readers = [_reader(node) for node in nodes]
        done = self.equalized.get(value.name or "")
        made = self._ranges(value, makers[0], 1.0 if done is None else done)
        if made is None or made.shape != (readers[0].channels,):
            self.left.update((node.name or node.op_type, "the ranges are of other channels") for node in nodes)
            return 0.0
        relative = value.name in self._statistics
        if all(reader.is_depthwise() for reader in readers):
            scale = made
        else:
            ranges = [reader.input_ranges(relative) for reader in readers if not reader.is_depthwise()]
            read = np.max(ranges, axis=0)
            scale = np.sqrt(np.divide(made, read, out=np.zeros_like(made), where=read > 0))
        scale = balanced(scale)
        total = scale if done is None else np.clip(scale * done, 1 / _MOST, _MOST)
        scale = total if done is None else total / done
        moved = float(np.abs(scale - 1).max(initial=0))
        if moved < _SETTLED:
            return moved
        for maker in makers:
            maker.multiply(1 / scale)
        for reader in readers:
            reader.multiply(scale)
        self.equalized[value.name or ""] = total
        return moved

    def _ranges(self, value: ir.Value, maker: Operand, done: Doubles | float) -> Doubles | None:
        statistics = self._statistics.get(value.name or "")
        if statistics is not None and statistics.channel_absmax is not None:
            return np.asarray(statistics.channel_absmax, np.float64) / done
        weight = fixed(maker.node.inputs[1])
        assert weight is not None
        axes = tuple(axis for axis, size in enumerate(maker.shape) if size == 1)
        ranges: Doubles = np.abs(weight).max(axis=axes).reshape(-1).astype(np.float64)
        return ranges


def _reader(node: ir.Node) -> Reader:
    reader = Reader.read(node)
    assert reader is not None
    return reader


def balanced(scale: Doubles) -> Doubles:
    """Scales with a geometric mean of 1, within bounds; 1 for channels that have none."""
    usable = np.isfinite(scale) & (scale > 0)
    if not usable.any():
        return np.ones_like(scale)
    logs = np.log(np.where(usable, scale, 1.0))
    logs = np.where(usable, logs - logs[usable].mean(), 0.0)
    spread: Doubles = np.exp(np.clip(logs, -np.log(_MOST), np.log(_MOST)))
    return spread
