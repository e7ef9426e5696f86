"""Weights rounded one after the other, each knowing what its inputs hold by now.

What a weight loses reaches those behind it. So the model runs along two paths, see `calibration.segments`: as it is,
and with the weights that are rounded already. Of the tensor that some products read, the moments on both paths are
summed; these products' weights are then rounded by each method that is to be tried, and that of least cost on rows kept
apart is taken. Rounding to nearest, as without data, is always among them.

Weights that read the same tensor do not depend on each other, nor does any where all are rounded by what the float
model shows: an executor rounds them. The model runs here.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import onnx_ir as ir

from ...calibration import Data
from ...calibration.collect import survey
from ...calibration.segments import Segments
from ...errors import OnnxpressError, first_line
from ...graph.constants import mark_constants
from ...graph.rewriting import required
from ...planning.lazy_weight import LazyWeight
from ...planning.result import Progress
from ...quantization.blas import one_thread_each
from ...quantization.low_rank import CompensatedWeight, LowRank
from ...quantization.methods import METHODS, Problem
from ...quantization.quantized_weight import Floats, QuantizedWeight, WeightError
from ...quantization.schemes import WeightScheme
from ...runtime.executor import ALONE, Executor, Shared
from ...settings.groups import TRAINED
from ...settings.recipe import Recipe
from .block_training import NAME as BLOCKS
from .block_training import BlockTraining
from .compensation import Factors, compensate_by_data, factors_of, rank_of, squared_error
from .distilling import NAME as WHOLE
from .distilling import distill
from .products import Job, Moments, Products, as_read, cost_of, numbers_of, rows_of
from .results import Compensated, Result, Results, Rounded, Store, describe
from .training import Setup


def method_of(recipe: Recipe) -> str:
    """Where there is data."""
    return recipe.method or _default_of(recipe)


def _default_of(recipe: Recipe) -> str:
    """Qronos needs the path of weights that are rounded already, which there is only in order."""
    return "qronos" if recipe.sequential else "gptq"


def reads_data(recipe: Recipe) -> bool:
    """Whether data changes what becomes of weights, where there is some."""
    return method_of(recipe) != "rtn" or recipe.compensates


def _layer_methods(recipe: Recipe) -> tuple[str, ...]:
    """Those that round one weight after the other, which what trains begins with."""
    named = [name for name in method_of(recipe).split(",") if name not in TRAINED]
    return tuple(dict.fromkeys(("rtn", *(named or [_default_of(recipe)]))))


def round_with_data(
    model: ir.Model, weights: Sequence[LazyWeight], data: Data, recipe: Recipe, progress: Progress, stage: str = "",
    executor: Executor = ALONE,
) -> Results:  # fmt: skip
    """Round what nodes of the main graph read; what others read is rounded without data when it is written.

    Args:
        model: The float model, of which `weights` are.
        weights: Of products and convolutions, and others, which stay as they are.
        data: Batches of inputs; with a folder where an interrupted run goes on, if it says one.
        recipe: With the method, or several with commas, and whether weights are rounded one after the other.
        progress: Told how the work goes on.
        stage: Name of this run among those of one conversion, whose folders are apart.
        executor: Rounds weights.

    Returns:
        What was done.

    Raises:
        UsageError: The folder is that of another run.
        OnnxpressError: ONNX Runtime cannot run the model, or results cannot be kept.
    """
    survey(data, progress)
    mark_constants(model)
    methods = _layer_methods(recipe)
    with Segments(model, data) as segments:
        tried = [METHODS[name] for name in methods]
        products = Products(model, segments, tried)
        jobs = products.jobs(weights)
        setup = None
        if recipe.trains:
            readers = {job.weight.identity: products.readers(job.weight) for job in jobs}
            setup = Setup(model, readers, data, recipe.method or "")  # which refuses models before hours of work
        how = (*methods, *_training(recipe), *(() if recipe.sequential else ("at once",)))
        how = (*how, recipe.form) if recipe.compensates else how
        described = "" if data.checkpoint is None else describe(model, [job.weight for job in jobs], how, data)
        store = Store(None if data.checkpoint is None else data.checkpoint / stage, described)
        run = _Run(products, segments, methods, recipe, store, executor)
        made = Results()
        progress("round", 0, len(jobs))
        for done, (job, result) in enumerate(run.results(jobs), 1):
            if result is not None:
                made[job.weight.identity] = result
            progress("round", done, len(jobs))
    return made if setup is None else _train(setup, jobs, made, recipe, progress, store)


def _train(
    setup: Setup, jobs: Sequence[Job], made: Results, recipe: Recipe, progress: Progress, store: Store
) -> Results:
    """Train what was rounded, block by block and then as a whole, as the recipe has it."""
    named = (recipe.method or "").split(",")
    try:
        if BLOCKS in named:
            made = BlockTraining(setup, jobs, recipe, progress, store).train(made)
        if WHOLE in named:
            made = distill(setup, jobs, made, recipe, progress, store)
    except RuntimeError as error:  # as PyTorch has it for too little memory, too
        raise OnnxpressError(f"method {recipe.method}: PyTorch cannot go on: {first_line(error)}") from error
    return made


def _training(recipe: Recipe) -> tuple[str, ...]:
    """What tells a run that trains from others."""
    return (recipe.method or "", str(recipe.steps), str(recipe.learning_rate)) if recipe.trains else ()


class _Run:
    """Weights of a model, rounded in order, or at once by what the float model shows."""

    def __init__(
        self, products: Products, segments: Segments, methods: Sequence[str], recipe: Recipe, store: Store,
        executor: Executor,
    ) -> None:  # fmt: skip
        self._products, self._segments, self._methods = products, segments, methods
        self._recipe, self._store, self._executor = recipe, store, executor

    def results(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Result | None]]:
        """The result for each weight; None where what it reads is nothing, or NaN or infinite."""
        if not self._recipe.sequential:
            yield from self._independent(jobs)
            return
        for _, group in itertools.groupby(jobs, lambda job: job.reads):
            found = list(self._independent(list(group)))
            for job, result in found:
                if result is not None and not job.is_last:  # after which nothing runs
                    self._change(job.weight, result)
            yield from found

    def _independent(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Result | None]]:
        """Results for weights of which none has to be known for another."""
        told: deque[bool] = deque()  # of the jobs that were looked at: whether there is work to do

        def calls() -> Iterator[tuple[Any, ...]]:
            for job, moments in self._with_moments(jobs):
                told.append(moments is not None)
                if moments is not None:
                    yield self._call(job.weight, moments)

        found = self._executor.map(_best, calls(), len(jobs))
        answer = next(found, None)  # the jobs before it, and it, are looked at by then
        for job in jobs:
            is_made = told.popleft()
            name = f"weight{job.index}"
            if is_made:
                result: Result | None = self._store.keep(name, *required(answer))
                answer = next(found, None)
            else:
                result = self._store.known(name)
            yield job, result

    def _with_moments(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Shared[Moments] | None]]:
        """What each weight is to be rounded by; None where that is known, or there is nothing."""
        for job in jobs:
            self._segments.advance(job.cut)
            is_known = self._store.files.has(f"weight{job.index}")
            yield job, None if is_known else self._products.shared_moments_of(job, self._executor)

    def _call(self, weight: LazyWeight, moments: Shared[Moments]) -> tuple[Any, ...]:
        factors = factors_of(weight, self._recipe.form) if rank_of(weight) else None
        return moments, rows_of(weight), weight.scheme, weight.convolution, self._methods, factors

    def _change(self, weight: LazyWeight, result: Result) -> None:
        """Let the nodes that read a weight read it rounded."""
        found, low_rank = result.read(), result.read_low_rank
        rows = numbers_of(weight, found if low_rank is None else CompensatedWeight(found, low_rank()))
        for node in self._products.readers(weight):
            self._segments.change(node.name or "", as_read(node, rows))


def _best(
    moments: Shared[Moments], rows: Floats, scheme: WeightScheme, convolution: bool, methods: Sequence[str],
    factors: Factors | None,
) -> tuple[QuantizedWeight, Rounded, Compensated | None, LowRank | None]:  # fmt: skip
    """The rounded weight of least cost on rows kept apart, with that as its error, and what is added to it.

    Args:
        moments: Of what it reads, to round by and to judge by.
        rows: The weight, [N, K].
        scheme: What it is rounded to.
        convolution: Whether it is of one.
        methods: That are tried, the plain one first.
        factors: Of a product of low rank that is to be tried beside it.
    """
    problem = Problem(rows, scheme, *moments.get(), convolution)
    apart = problem.apart
    costs: dict[str, float] = {}
    best: QuantizedWeight | None = None
    with one_thread_each():
        for name in methods:
            found = METHODS[name].round(problem)
            cost = cost_of(apart, found, rows)
            if best is None or cost < min(costs.values()):
                best, by = found, METHODS[name]
            costs[name] = cost
        best = required(best)
        rounded = Rounded(by.name, costs[by.name], costs[methods[0]], apart.energy(rows))
        error, compensated, low_rank = best.error.error, None, None
        if factors is not None:
            compensated, low_rank = compensate_by_data(factors, best, problem, by.target(problem), rounded.cost)
            if low_rank is not None:
                error = squared_error(CompensatedWeight(best, low_rank), rows)
                rounded = dataclasses.replace(rounded, cost=compensated.after)
    told = WeightError(error, rounded.cost, rounded.plain, best.error.energy)
    return dataclasses.replace(best, error=told), rounded, compensated, low_rank
