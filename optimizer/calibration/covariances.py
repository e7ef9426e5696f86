"""Moments of what products read in the float model, a few rows or patches of each batch.

The estimate in K dimensions is drawn towards its diagonal: what was not seen to vary together is taken to vary alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import onnx_ir as ir

from ..graph.rewriting import required
from ..planning.result import Progress
from ..quantization.input_moments import InputMoments, draw_towards_diagonal
from ..runtime.feeds import Feeds
from .inner_products import Sums
from .observe import Observer
from .patches import draw, inputs_of_output

_MEMORY = 256_000_000
"""Bytes of the moments that are held at a time."""
_MOST_INPUTS = 2304
"""Of an output, 3 x 3 x 256: beyond, they cost more time than they are worth."""
_BATCHES = 64


class Covariances:
    """Moments by node, computed in groups of nodes that follow each other.

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
        self._held: dict[str, InputMoments | None] = {}

    def get(self, name: str) -> InputMoments | None:
        """Of the node of this name, as float64, drawn towards their diagonal.

        None if they are too large, or the node read nothing, or NaN or infinity.

        Raises:
            OnnxpressError: ONNX Runtime cannot run the model.
        """
        if name not in self._held:
            group = next((group for group in self._groups if any(node.name == name for node in group)), None)
            if group is None:
                return None
            self._held = self._collect(group)
        return self._held[name]

    def _collect(self, group: list[ir.Node]) -> dict[str, InputMoments | None]:
        generator = np.random.default_rng(0)
        sums = {node.name or "": Sums(np.float64, centred=self._centred) for node in group}
        given = {value.name for value in self._model.graph.inputs}
        inner = sorted({name for node in group if (name := required(node.inputs[0]).name or "") not in given})
        observer = Observer(self._model, inner) if inner else None
        before, whole = self._groups.index(group) * _BATCHES, len(self._groups) * _BATCHES
        for batch, feeds in enumerate(islice(self._data, _BATCHES)):
            self._progress("observe inputs", before + batch, whole)
            values = {**feeds, **(dict(zip(inner, observer.run(feeds), strict=True)) if observer else {})}
            for node in group:
                rows = draw(node, values[required(node.inputs[0]).name or ""], generator)
                if not np.isfinite(rows).all():
                    sums.pop(node.name or "", None)
                elif (total := sums.get(node.name or "")) is not None:
                    total.add(rows)
        self._progress("observe inputs", before + _BATCHES, whole)
        return {node.name or "": _drawn(sums.get(node.name or "")) for node in group}


def _drawn(sums: Sums | None) -> InputMoments | None:
    if sums is None or not sums.count:
        return None
    moments = sums.mean()
    draw_towards_diagonal(moments.second, sums.trusted)
    return moments


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
