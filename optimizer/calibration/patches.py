"""Covariances of what each output of a product reads: patches of a Conv's input, rows of a matrix.

Neighbouring patches tell much the same, so a few of each batch are drawn, and two of a batch count as seen. The
estimate in K dimensions is drawn towards its diagonal, by the share K / (K + n) for n that count: what was not seen to
vary together is taken to vary alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from numpy.lib.stride_tricks import sliding_window_view

from ..graph.constants import constant_of
from ..graph.rewriting import required
from ..planning.result import Progress
from ..runtime.feeds import Feeds
from .observe import Observer

Doubles = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

_MEMORY = 256_000_000
"""Bytes of the covariances that are held at a time."""
_MOST_INPUTS = 2304
"""Of an output, 3 x 3 x 256: beyond, a covariance costs more time than it is worth."""
_BATCHES = 64
COUNTED = 2
"""Patches of a batch that count. Were all to count, 16 lines of text would mislead: a text recogniser then reads 92.5 %
of its lines, 95.5 % with two, as without compensation; with 128 lines 98.0 %, 98.5 % and 98.5 %."""
_LEAST_DRAWN = 64
"""Patches of a batch, and a sixteenth of K on top: 64 batches make four for each of many inputs."""


class Covariances:
    """Covariances by node, computed in groups of nodes that follow each other.

    Args:
        model: The float model, which is not changed.
        nodes: Conv, Gemm and MatMul nodes with constant weights, in the order of the graph.
        data: Batches of inputs, which can be gone through several times; the first 64 are used.
        centred: About the mean, for products whose bias takes the mean of an error away.
        progress: Told how the work goes on.
    """

    def __init__(
        self,
        model: ir.Model,
        nodes: Sequence[ir.Node],
        data: Iterable[Feeds],
        *,
        centred: bool,
        progress: Progress = lambda _stage, _done, _total: None,
    ) -> None:
        self._model, self._data, self._centred, self._progress = model, data, centred, progress
        self._groups = _groups([node for node in nodes if inputs_of_output(node) <= _MOST_INPUTS])
        self._held: dict[str, Doubles | None] = {}

    def get(self, name: str) -> Doubles | None:
        """Of the node of this name: float64 [G, K, K] for G groups of outputs.

        None if it is too large, or the node read nothing, or NaN or infinity.

        Raises:
            OnnxpressError: ONNX Runtime cannot run the model.
        """
        if name not in self._held:
            group = next((group for group in self._groups if any(node.name == name for node in group)), None)
            if group is None:
                return None
            self._held = self._collect(group)
        return self._held[name]

    def _collect(self, group: list[ir.Node]) -> dict[str, Doubles | None]:
        generator = np.random.default_rng(0)
        sums = {node.name or "": _Sum(self._centred) for node in group}
        given = {value.name for value in self._model.graph.inputs}
        inner = sorted({name for node in group if (name := required(node.inputs[0]).name or "") not in given})
        observer = Observer(self._model, inner) if inner else None
        before, whole = self._groups.index(group) * _BATCHES, len(self._groups) * _BATCHES
        for batch, feeds in enumerate(islice(self._data, _BATCHES)):
            self._progress("observe inputs", before + batch, whole)
            values = {**feeds, **(dict(zip(inner, observer.run(feeds), strict=True)) if observer else {})}
            for node in group:
                sums[node.name or ""].add(draw(node, values[required(node.inputs[0]).name or ""], generator))
        self._progress("observe inputs", before + _BATCHES, whole)
        return {name: total.covariance() for name, total in sums.items()}


class _Sum:
    """Of rows x and of x x', in G groups.

    Those to be centred are counted from the mean of the first: what is left to subtract in the end is then small.
    """

    def __init__(self, centred: bool) -> None:
        self._centred, self._origin = centred, np.zeros(())
        self._finite = True
        self._count, self._trusted, self._first, self._second = 0, 0, np.zeros(()), np.zeros(())

    def add(self, rows: Doubles) -> None:
        """Rows [G, n, K]."""
        self._finite = self._finite and bool(np.isfinite(rows).all())
        if not (rows.shape[1] and self._finite):
            return
        if self._centred and not self._count:
            self._origin = rows.mean(axis=1, keepdims=True)
        rows = rows - self._origin
        self._count += rows.shape[1]
        self._trusted += min(COUNTED, rows.shape[1])
        self._first = self._first + rows.sum(axis=1)
        self._second = self._second + np.matmul(rows.transpose(0, 2, 1), rows)

    def covariance(self) -> Doubles | None:
        """[G, K, K], drawn towards its diagonal; None of no rows, or of some that are not finite."""
        if not (self._count and self._finite):
            return None
        found: Doubles = self._second / self._count
        if self._centred:
            mean = self._first / self._count
            found -= mean[:, :, None] * mean[:, None, :]
        size = found.shape[-1]
        found *= self._trusted / (self._trusted + size)
        diagonal = np.einsum("gkk->gk", found)
        diagonal *= 1 + size / self._trusted
        return found


def inputs_of_output(node: ir.Node) -> int:
    """K."""
    shape = _weight_shape(node)
    if node.op_type == "Conv":
        return math.prod(shape[1:])
    return shape[1] if node.attributes.get_int("transB", 0) else shape[0]


def _weight_shape(node: ir.Node) -> tuple[int, ...]:
    """Of a constant, of which the graph itself may not say it."""
    return tuple(required(constant_of(required(node.inputs[1]))).shape.numpy())


def _groups(nodes: Sequence[ir.Node]) -> list[list[ir.Node]]:
    groups: list[list[ir.Node]] = []
    used = 0
    for node in nodes:
        size = 8 * node.attributes.get_int("group", 1) * inputs_of_output(node) ** 2
        if not groups or used + size > _MEMORY:
            groups.append([])
            used = 0
        groups[-1].append(node)
        used += size
    return groups


def draw(node: ir.Node, x: Array, generator: np.random.Generator) -> Doubles:
    """Some of what the outputs of a node read of x, [G, n, K], in the order of the weight's elements."""
    most = _LEAST_DRAWN + inputs_of_output(node) // 16
    if node.op_type == "Conv":
        return _patches(node, x, most, generator)
    rows = rows_of(node, x)
    drawn = generator.choice(len(rows), min(most, len(rows)), replace=False)
    return np.asarray(rows[drawn], np.float64)[None]


def rows_of(node: ir.Node, x: Array) -> Array:
    """What the outputs of a product read of x, [n, K]."""
    return x.T if node.attributes.get_int("transA", 0) else x.reshape(-1, x.shape[-1])


def _patches(node: ir.Node, x: Array, most: int, generator: np.random.Generator) -> Doubles:
    kernel = list(_weight_shape(node)[2:])
    axes = range(2, x.ndim)
    strides, dilations = (node.attributes.get_ints(key, [1] * len(kernel)) for key in ("strides", "dilations"))
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    x = np.pad(x, [(0, 0), (0, 0), *_pads(node, x.shape[2:], spans, strides)])
    windows = sliding_window_view(x, spans, axis=tuple(axes))
    every = (slice(None), slice(None))
    windows = windows[every + tuple(slice(None, None, step) for step in [*strides, *dilations])]
    places = (len(x), *windows.shape[2 : 2 + len(kernel)])
    drawn = generator.choice(math.prod(places), min(most, math.prod(places)), replace=False)
    batch, *place = np.unravel_index(drawn, places)
    groups = node.attributes.get_int("group", 1)
    chosen = (batch, slice(None), *place)
    rows = windows[chosen].reshape(len(drawn), groups, -1)
    return np.asarray(rows.transpose(1, 0, 2), np.float64)


def _pads(node: ir.Node, sizes: Sequence[int], spans: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Zeros at the beginning and the end of each axis, as the operator Conv defines auto_pad."""
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        steps = zip(sizes, spans, strides, strict=True)
        totals = [max(0, (-(-size // stride) - 1) * stride + span - size) for size, span, stride in steps]
        halves = [(total // 2, total - total // 2) for total in totals]
        return halves if auto == "SAME_UPPER" else [(end, begin) for begin, end in halves]
    pads = node.attributes.get_ints("pads", [0] * 2 * len(sizes)) if auto == "NOTSET" else [0] * 2 * len(sizes)
    return list(zip(pads[: len(sizes)], pads[len(sizes) :], strict=True))
