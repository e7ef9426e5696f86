"""Weights rounded one after the other, each knowing what its inputs hold by now.

What a weight loses reaches those behind it. So the model runs along two paths, see `calibration.segments`: as it is,
and with the weights that are rounded already. Of the tensor that some products read, the moments on both paths are
summed; these products' weights are then rounded by each method that is to be tried, and that of least cost on rows kept
apart is taken. Rounding to nearest, as without data, is always among them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...calibration import Data
from ...calibration.collect import survey
from ...calibration.inner_products import MomentSums, can_be_observed
from ...calibration.segments import Segments
from ...graph.constants import constant_of, mark_constants, release
from ...graph.rewriting import required
from ...planning.lazy_weight import LazyWeight
from ...planning.result import Progress
from ...quantization.input_moments import InputMoments
from ...quantization.methods import METHODS, Problem
from ...quantization.quantized_weight import QuantizedWeight, WeightError
from ...quantization.schemes import WeightScheme
from ...settings.recipe import Recipe
from .results import Result, Results, Rounded, Store, describe

Floats = npt.NDArray[np.float32]

_ROWS = 1 << 13
"""Output channels that are judged at a time."""


def method_of(recipe: Recipe) -> str:
    """Where there is data."""
    return recipe.method or "gptq"


def round_with_data(
    model: ir.Model, weights: Sequence[LazyWeight], data: Data, method: str, progress: Progress, stage: str = ""
) -> Results:
    """Round what nodes of the main graph read; what others read is rounded without data when it is written.

    Args:
        model: The float model, of which `weights` are.
        weights: Of products and convolutions, and others, which stay as they are.
        data: Batches of inputs; with a folder where an interrupted run goes on, if it says one.
        method: One of `METHODS`, or several with commas.
        progress: Told how the work goes on.
        stage: Name of this run among those of one conversion, whose folders are apart.

    Returns:
        What was done.

    Raises:
        UsageError: The folder is that of another run.
        OnnxpressError: ONNX Runtime cannot run the model, or results cannot be kept.
    """
    survey(data, progress)
    mark_constants(model)
    methods = tuple(dict.fromkeys(("rtn", *method.split(","))))
    with Segments(model, data) as segments:
        run = _Run(model, segments, methods)
        jobs = run.jobs(weights)
        described = "" if data.checkpoint is None else describe(model, [job.weight for job in jobs], methods, data)
        store = Store(None if data.checkpoint is None else data.checkpoint / stage, described)
        made: Results = {}
        for job in jobs:
            progress("round", len(made), len(jobs))
            result = run.round(job, store)
            if result is not None:
                made[job.weight.identity] = result
        progress("round", len(jobs), len(jobs))
    return made


@dataclasses.dataclass(frozen=True)
class _Job:
    """A weight.

    Attributes:
        weight: It.
        index: Its number.
        node: The first node that reads it.
        cut: Name of the first of all nodes whose inputs are the same; they are rounded before it runs.
        reads: What tells these from others.
        is_last: Whether no weight behind these is left.
    """

    weight: LazyWeight
    index: int
    node: ir.Node
    cut: str
    reads: tuple[object, ...]
    is_last: bool


class _Run:
    """Weights of a model, rounded in order."""

    def __init__(self, model: ir.Model, segments: Segments, methods: Sequence[str]) -> None:
        self._nodes = {node.name: node for node in model.graph}
        self._segments = segments
        self._methods = [METHODS[name] for name in methods]
        self._moments: tuple[tuple[object, ...], tuple[InputMoments, InputMoments] | None] = ((), None)

    def jobs(self, weights: Sequence[LazyWeight]) -> list[_Job]:
        """Weights that can be observed, in the order in which what they read is made; those that share it together."""
        found: list[tuple[LazyWeight, ir.Node]] = []
        for weight in weights:
            readers = [node for node in self._readers(weight) if can_be_observed(node)]
            if readers:
                found.append((weight, min(readers, key=self._position)))
        found.sort(key=lambda each: self._position(each[1]))
        together: dict[tuple[object, ...], list[tuple[LazyWeight, ir.Node]]] = {}
        for weight, node in found:
            together.setdefault(_reads(node), []).append((weight, node))
        jobs: list[_Job] = []
        for at, (reads, members) in enumerate(together.items(), 1):
            cut, is_last = members[0][1].name or "", at == len(together)
            for weight, node in members:
                jobs.append(_Job(weight, len(jobs), node, cut, reads, is_last))
        return jobs

    def round(self, job: _Job, store: Store) -> Result | None:
        """The result for a weight; None where what it reads is nothing, or NaN or infinite."""
        self._segments.advance(job.cut)
        known = store.known(job.index)
        if known is None:
            moments = self._moments_of(job)
            if moments is None:
                return None
            known = store.keep(job.index, *self._best(job.weight, *moments))
        if not job.is_last:  # after which nothing runs
            self._change(job.weight, known.read())
        return known

    def _readers(self, weight: LazyWeight) -> list[ir.Node]:
        """Those in the main graph."""
        names = [reader.node.name for reader in weight.readers if not reader.path]
        return [self._nodes[name] for name in names if name in self._nodes]

    def _position(self, node: ir.Node) -> int:
        return self._segments.position(node.name or "")

    def _moments_of(self, job: _Job) -> tuple[InputMoments, InputMoments] | None:
        """Of what a weight reads: to round by, and to judge by; None where it reads nothing that is finite."""
        reads, moments = self._moments
        if reads != job.reads:
            self._moments = (), None  # never those of two
            sums = MomentSums(job.node, cross=any(method.reads_both_paths for method in self._methods))
            name = required(job.node.inputs[0]).name or ""
            for batch in range(self._segments.batches):
                sums.add(*self._segments.pair(name, batch))
            moments = sums.moments()
            self._moments = job.reads, moments
        return moments

    def _best(self, weight: LazyWeight, moments: InputMoments, apart: InputMoments) -> tuple[QuantizedWeight, Rounded]:
        """The rounded weight of least cost on rows kept apart, with that as its error."""
        given = weight.rows()
        rows = np.ascontiguousarray(given if weight.weight.transposed else given.T, np.float32)
        del given
        release(weight.weight.tensor)
        problem = Problem(rows, weight.scheme, moments, apart, weight.convolution)
        costs: dict[str, float] = {}
        best: QuantizedWeight | None = None
        for method in self._methods:
            found = method.round(problem)
            cost = _cost(apart, found, weight.scheme, rows)
            if best is None or cost < min(costs.values()):
                best = found
            costs[method.name] = cost
        name = min(costs, key=costs.__getitem__)
        energy = apart.energy(rows)
        rounded = Rounded(name, costs[name], costs[self._methods[0].name], energy)
        best = required(best)
        error = WeightError(best.error.error, rounded.cost, rounded.plain, best.error.energy)
        return dataclasses.replace(best, error=error), rounded

    def _change(self, weight: LazyWeight, found: QuantizedWeight) -> None:
        """Let the nodes that read a weight read it rounded."""
        rows = found.decoded(weight.scheme, weight.weight.K)
        if weight.factor and not weight.scheme.has_kernel:
            rows /= np.float32(weight.factor)  # which the node has still to apply
        for node in self._readers(weight):
            self._segments.change(node.name or "", _as_read(node, rows))


def _cost(apart: InputMoments, found: QuantizedWeight, scheme: WeightScheme, rows: Floats) -> float:
    """What rounded weights cost, a part of the channels at a time, where these have their inputs in common."""
    step = len(rows) if len(apart.second) > 1 else _ROWS
    parts = [slice(begin, begin + step) for begin in range(0, len(rows), step)]
    return sum(apart.cost(found.part(part).decoded(scheme, rows.shape[1]), rows[part]) for part in parts)


def _reads(node: ir.Node) -> tuple[object, ...]:
    # What two Conv read of one tensor are different patches.
    alone = node.name if node.op_type == "Conv" else None
    return required(node.inputs[0]).name, node.attributes.get_int("transA", 0), alone


def _as_read(node: ir.Node, rows: Floats) -> npt.NDArray[Any]:
    """The weight [N, K] in the layout and type of a node's second input."""
    read = required(constant_of(required(node.inputs[1])))
    first = node.op_type in ("Conv", "ConvTranspose") or node.attributes.get_int("transB", 0) == 1
    array = rows.reshape(tuple(read.shape.numpy())) if first else rows.T
    return np.ascontiguousarray(array, read.dtype.numpy())
