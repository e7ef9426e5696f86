"""The products whose weights are rounded by data: in which order, and what their inputs hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...calibration.inner_products import MomentSums, can_be_observed
from ...calibration.segments import Segments
from ...graph.constants import constant_of, release
from ...graph.rewriting import required
from ...planning.lazy_weight import LazyWeight
from ...quantization.input_moments import InputMoments
from ...quantization.low_rank import CompensatedWeight
from ...quantization.methods import Method, Problem
from ...quantization.quantized_weight import QuantizedWeight
from ...runtime.executor import Executor, Shared

Floats = npt.NDArray[np.float32]
Moments = tuple[InputMoments, InputMoments]
"""Of what a weight reads: to round by, and to judge by."""

_ROWS = 1 << 13
"""Output channels that are judged at a time."""


@dataclasses.dataclass(frozen=True)
class Job:
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


class Products:
    """Nodes of a model whose weights are rounded, and what they read along its segments.

    Args:
        model: The float model, with its constants marked.
        segments: Of it.
        methods: That need the moments.
    """

    def __init__(self, model: ir.Model, segments: Segments, methods: Sequence[Method]) -> None:
        self._nodes = {node.name: node for node in model.graph}
        self._segments = segments
        self._cross = any(method.reads_both_paths for method in methods)
        self._moments: tuple[tuple[object, ...], Moments | None] = ((), None)
        self._shared: Shared[Moments] | None = None

    def jobs(self, weights: Sequence[LazyWeight]) -> list[Job]:
        """Weights that can be observed, in the order in which what they read is made; those that share it together."""
        found: list[tuple[LazyWeight, ir.Node]] = []
        for weight in weights:
            readers = [node for node in self.readers(weight) if can_be_observed(node)]
            if readers:
                found.append((weight, min(readers, key=self._position)))
        found.sort(key=lambda each: self._position(each[1]))
        together: dict[tuple[object, ...], list[tuple[LazyWeight, ir.Node]]] = {}
        for weight, node in found:
            together.setdefault(_reads(node), []).append((weight, node))
        jobs: list[Job] = []
        for at, (reads, members) in enumerate(together.items(), 1):
            cut, is_last = members[0][1].name or "", at == len(together)
            for weight, node in members:
                jobs.append(Job(weight, len(jobs), node, cut, reads, is_last))
        return jobs

    def readers(self, weight: LazyWeight) -> list[ir.Node]:
        """Those in the main graph."""
        names = [reader.node.name for reader in weight.readers if not reader.path]
        return [self._nodes[name] for name in names if name in self._nodes]

    def _position(self, node: ir.Node) -> int:
        return self._segments.position(node.name or "")

    def shared_moments_of(self, job: Job, executor: Executor) -> Shared[Moments] | None:
        """As `moments_of`, handed over once for all weights that read the same."""
        moments = self.moments_of(job)
        if moments is None:
            return None
        if self._shared is None:
            self._shared = executor.share(moments)
        return self._shared

    def moments_of(self, job: Job) -> Moments | None:
        """Of what a weight reads; None where it reads nothing that is finite."""
        reads, moments = self._moments
        if reads != job.reads:
            self._moments, self._shared = ((), None), None  # never those of two
            sums = MomentSums(job.node, cross=self._cross)
            name = required(job.node.inputs[0]).name or ""
            for batch in range(self._segments.batches):
                sums.add(*self._segments.pair(name, batch), self._segments.mask(batch))
            moments = sums.moments()
            self._moments = job.reads, moments
        return moments


def problem_of(weight: LazyWeight, moments: InputMoments, apart: InputMoments) -> Problem:
    """What a method is given of a weight."""
    return Problem(rows_of(weight), weight.scheme, moments, apart, weight.convolution)


def rows_of(weight: LazyWeight) -> Floats:
    """A weight as it is given to methods, [N, K]."""
    given = weight.rows()
    rows = np.ascontiguousarray(given if weight.weight.transposed else given.T, np.float32)
    del given
    release(weight.weight.tensor)
    return rows


def numbers_of(weight: LazyWeight, found: QuantizedWeight | CompensatedWeight) -> Floats:
    """What the nodes that read a weight have to multiply by in its place, [N, K]."""
    rows = found.rows()
    if weight.factor and not weight.scheme.takes_factors:
        rows /= np.float32(weight.factor)  # which the node has still to apply
    return rows


def cost_of(apart: InputMoments, found: QuantizedWeight | CompensatedWeight, rows: Floats) -> float:
    """What rounded weights cost, a part of the channels at a time, where these have their inputs in common."""
    step = len(rows) if len(apart.second) > 1 else _ROWS
    parts = [slice(begin, begin + step) for begin in range(0, len(rows), step)]
    return sum(apart.cost(found.part(part).rows(), rows[part]) for part in parts)


def _reads(node: ir.Node) -> tuple[object, ...]:
    # What two Conv read of one tensor are different patches.
    alone = node.name if node.op_type == "Conv" else None
    return required(node.inputs[0]).name, node.attributes.get_int("transA", 0), alone


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a node has its second input.

    Attributes:
        shape: Of it.
        dtype: Of it.
        is_transposed: Whether output channels come last.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_transposed: bool

    def of(self, rows: Floats) -> npt.NDArray[Any]:
        """The weight [N, K] so."""
        array = rows.T if self.is_transposed else rows.reshape(self.shape)
        return np.ascontiguousarray(array, self.dtype)


def layout_of(node: ir.Node) -> Layout:
    """That of a node that reads a constant."""
    read = required(constant_of(required(node.inputs[1])))
    first = node.op_type in ("Conv", "ConvTranspose") or node.attributes.get_int("transB", 0) == 1
    return Layout(tuple(read.shape.numpy()), read.dtype.numpy(), not first)


def as_read(node: ir.Node, rows: Floats) -> npt.NDArray[Any]:
    """The weight [N, K] in the layout and type of a node's second input."""
    return layout_of(node).of(rows)
