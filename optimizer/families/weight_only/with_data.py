"""Weights rounded one after the other, each knowing what its inputs hold by now.

What a weight loses reaches those behind it. So the model runs along two paths, see `calibration.segments`: as it is,
and with the weights that are rounded already. Of the tensor that some products read, the moments on both paths are
summed; these products' weights are then rounded by each method that is to be tried, and that of least cost on rows kept
apart is taken. Rounding to nearest, as without data, is always among them.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
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
from ...quantization.methods import METHODS, Method, Problem
from ...quantization.quantized_weight import QuantizedWeight, WeightError
from ...settings.recipe import Recipe

Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Rounded:
    """What was done to a weight.

    Attributes:
        method: That it was rounded by.
        cost: What it adds to its product's squares, on rows that the method has not seen.
        plain: The same of rounding to nearest, as without data.
        energy: The squares of the product on these rows.
    """

    method: str
    cost: float
    plain: float
    energy: float


@dataclasses.dataclass(frozen=True)
class Result:
    """A rounded weight: what was done, and what reads it."""

    rounded: Rounded
    read: Callable[[], QuantizedWeight]


Results = dict[tuple[object, ...], Result]
"""By `LazyWeight.identity`."""


def method_of(recipe: Recipe) -> str:
    """Where there is data."""
    return recipe.method or "gptq"


def round_with_data(
    model: ir.Model, weights: Sequence[LazyWeight], data: Data, method: str, progress: Progress
) -> Results:
    """Round what nodes of the main graph read; what others read is rounded without data when it is written.

    Args:
        model: The float model, of which `weights` are.
        weights: Of products and convolutions, and others, which stay as they are.
        data: Batches of inputs.
        method: One of `METHODS`.
        progress: Told how the work goes on.

    Returns:
        What was done, by `LazyWeight.identity`.

    Raises:
        OnnxpressError: ONNX Runtime cannot run the model.
    """
    survey(data, progress)
    mark_constants(model)
    nodes = {node.name: node for node in model.graph}
    made: Results = {}
    store = _Store()
    methods = [METHODS[name] for name in dict.fromkeys(("rtn", method))]
    with Segments(model, data) as segments:
        groups = list(_by_input(weights, nodes, segments))
        whole = sum(map(len, groups))
        for group in groups:
            first = group[0].node
            segments.advance(first.name or "")
            known = _moments(first, segments, cross=any(each.reads_both_paths for each in methods))
            for job in group:
                progress("round", len(made), whole)
                if known is not None:
                    made[job.weight.identity] = _round(job, methods, *known, segments, nodes, store)
            del known
        progress("round", whole, whole)
    return made


@dataclasses.dataclass(frozen=True)
class _Job:
    """A weight, and the first node that reads it."""

    weight: LazyWeight
    node: ir.Node


def _by_input(
    weights: Sequence[LazyWeight], nodes: dict[str | None, ir.Node], segments: Segments
) -> Iterator[list[_Job]]:
    """Those that can be observed, by the tensor that their first readers read, in the order of the graph."""
    jobs = []
    for weight in weights:
        readers = [nodes[each.node.name] for each in weight.readers if not each.path and each.node.name in nodes]
        readers = [node for node in readers if can_be_observed(node)]
        if readers:
            jobs.append(_Job(weight, min(readers, key=lambda node: segments.position(node.name or ""))))
    jobs.sort(key=lambda job: segments.position(job.node.name or ""))
    groups: dict[tuple[Any, ...], list[_Job]] = {}
    for job in jobs:
        # What two Conv read of one tensor are different patches.
        alone = job.node.name if job.node.op_type == "Conv" else None
        key = (required(job.node.inputs[0]).name, job.node.attributes.get_int("transA", 0), alone)
        groups.setdefault(key, []).append(job)
    yield from groups.values()


def _moments(node: ir.Node, segments: Segments, *, cross: bool) -> tuple[InputMoments, InputMoments] | None:
    """Of what a node reads: to round by, and to judge by; None where it reads nothing, or NaN or infinity."""
    name = required(node.inputs[0]).name or ""
    sums = MomentSums(node, cross=cross)
    for batch in range(segments.batches):
        sums.add(*segments.pair(name, batch))
    return sums.moments()


def _round(
    job: _Job, methods: Sequence[Method], moments: InputMoments, held: InputMoments, segments: Segments,
    nodes: dict[str | None, ir.Node], store: _Store,
) -> Result:  # fmt: skip
    weight = job.weight
    given = weight.rows()
    rows = np.ascontiguousarray(given if weight.weight.transposed else given.T, np.float32)
    del given
    release(weight.weight.tensor)
    problem = Problem(rows, weight.scheme, moments, held, weight.convolution)
    best: tuple[float, str, QuantizedWeight, Floats] | None = None
    plain = 0.0
    for method in methods:
        found = method.round(problem)
        decoded = found.decoded(weight.scheme, rows.shape[1])
        cost = held.cost(decoded, rows)
        if best is None:
            plain = cost
        if best is None or cost < best[0]:
            best = cost, method.name, found, decoded
    assert best is not None
    cost, name, found, decoded = best
    for reader in weight.readers:
        node = nodes.get(reader.node.name) if not reader.path else None
        if node is not None:
            units = np.float32(1 if weight.scheme.has_kernel else weight.factor or 1)
            segments.change(node.name or "", _as_read(node, decoded / units))
    error = WeightError(found.error.error, cost, plain, found.error.energy)
    read = store.keep(dataclasses.replace(found, error=error))
    return Result(Rounded(name, cost, plain, held.cost(np.zeros_like(rows), rows)), read)


def _as_read(node: ir.Node, rows: Floats) -> npt.NDArray[Any]:
    """The weight [N, K] in the layout and type of a node's second input."""
    read = required(constant_of(required(node.inputs[1])))
    shape = tuple(read.shape.numpy())
    first = node.op_type in ("Conv", "ConvTranspose") or node.attributes.get_int("transB", 0) == 1
    array = rows.reshape(shape) if first else rows.T
    return np.ascontiguousarray(array, read.dtype.numpy())


class _Store:
    """Rounded weights in files, which go when nobody needs them any more."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="onnxpress-")
        self._count = 0

    def keep(self, weight: QuantizedWeight) -> Callable[[], QuantizedWeight]:
        """Write a weight; what reads it."""
        self._count += 1
        path = Path(self._folder.name) / f"{self._count}.npz"
        np.savez(path, packed=weight.packed, scales=weight.scales, zero_points=weight.zero_points)
        error = weight.error

        def read() -> QuantizedWeight:
            with np.load(path) as parts:
                return QuantizedWeight(parts["packed"], parts["scales"], parts["zero_points"], error)

        read.__dict__["folder"] = self._folder  # which lasts as long as its readers do
        return read
