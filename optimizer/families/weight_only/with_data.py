"""Weights rounded one after the other, each knowing what its inputs hold by now.

What a weight loses reaches those behind it. So the model runs along two paths, see `calibration.segments`: as it is,
and with the weights that are rounded already. Of the tensor that some products read, the moments on both paths are
summed; these products' weights are then rounded by each method that is to be tried, and that of least cost on rows kept
apart is taken. Rounding to nearest, as without data, is always among them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import onnx_ir as ir

from ...calibration import Data
from ...calibration.collect import survey
from ...calibration.segments import Segments
from ...errors import OnnxpressError, first_line
from ...graph.constants import mark_constants
from ...graph.rewriting import required
from ...planning.lazy_weight import LazyWeight
from ...planning.result import Progress
from ...quantization.input_moments import InputMoments
from ...quantization.low_rank import CompensatedWeight
from ...quantization.methods import METHODS, Method
from ...quantization.quantized_weight import QuantizedWeight, WeightError
from ...settings.groups import TRAINED
from ...settings.recipe import Recipe
from .block_training import NAME as BLOCKS
from .block_training import BlockTraining
from .compensation import compensate_by_data, squared_error, why_none
from .distilling import NAME as WHOLE
from .distilling import distill
from .products import Job, Products, as_read, cost_of, numbers_of, problem_of
from .results import Result, Results, Rounded, Store, describe
from .training import Setup

_METHOD = "gptq"


def method_of(recipe: Recipe) -> str:
    """Where there is data."""
    return recipe.method or _METHOD


def reads_data(recipe: Recipe) -> bool:
    """Whether data changes what becomes of weights, where there is some."""
    return method_of(recipe) != "rtn" or recipe.compensates


def _layer_methods(recipe: Recipe) -> tuple[str, ...]:
    """Those that round one weight after the other, which what trains begins with."""
    named = [name for name in method_of(recipe).split(",") if name not in TRAINED]
    return tuple(dict.fromkeys(("rtn", *(named or [_METHOD]))))


def round_with_data(
    model: ir.Model, weights: Sequence[LazyWeight], data: Data, recipe: Recipe, progress: Progress, stage: str = ""
) -> Results:
    """Round what nodes of the main graph read; what others read is rounded without data when it is written.

    Args:
        model: The float model, of which `weights` are.
        weights: Of products and convolutions, and others, which stay as they are.
        data: Batches of inputs; with a folder where an interrupted run goes on, if it says one.
        recipe: With the method, or several with commas, and whether weights are rounded one after the other.
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
    methods = _layer_methods(recipe)
    with Segments(model, data) as segments:
        tried = [METHODS[name] for name in methods]
        products = Products(model, segments, tried)
        run = _Run(products, segments, tried, recipe)
        jobs = products.jobs(weights)
        setup = None
        if recipe.trains:
            readers = {job.weight.identity: products.readers(job.weight) for job in jobs}
            setup = Setup(model, readers, data, recipe.method or "")  # which refuses models before hours of work
        how = (*methods, *_training(recipe), *(() if recipe.sequential else ("at once",)))
        how = (*how, recipe.form) if recipe.compensates else how
        described = "" if data.checkpoint is None else describe(model, [job.weight for job in jobs], how, data)
        store = Store(None if data.checkpoint is None else data.checkpoint / stage, described)
        made = Results()
        for job in jobs:
            progress("round", len(made), len(jobs))
            result = run.round(job, store)
            if result is not None:
                made[job.weight.identity] = result
        progress("round", len(jobs), len(jobs))
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

    def __init__(self, products: Products, segments: Segments, methods: Sequence[Method], recipe: Recipe) -> None:
        self._products, self._segments, self._methods = products, segments, methods
        self._recipe = recipe

    def round(self, job: Job, store: Store) -> Result | None:
        """The result for a weight; None where what it reads is nothing, or NaN or infinite."""
        self._segments.advance(job.cut)
        known = store.known(name := f"weight{job.index}")
        if known is None:
            moments = self._products.moments_of(job)
            if moments is None:
                return None
            known = self._best(job.weight, *moments, functools.partial(store.keep, name))
        if self._recipe.sequential and not job.is_last:  # after which nothing runs
            found = known.read()
            low_rank = known.read_low_rank
            self._change(job.weight, found if low_rank is None else CompensatedWeight(found, low_rank()))
        return known

    def _best(
        self, weight: LazyWeight, moments: InputMoments, apart: InputMoments, keep: Callable[..., Result]
    ) -> Result:
        """The rounded weight of least cost on rows kept apart, with that as its error, and what is added to it."""
        problem = problem_of(weight, moments, apart)
        costs: dict[str, float] = {}
        best: QuantizedWeight | None = None
        for method in self._methods:
            found = method.round(problem)
            cost = cost_of(apart, found, problem.rows)
            if best is None or cost < min(costs.values()):
                best, by = found, method
            costs[method.name] = cost
        energy = apart.energy(problem.rows)
        rounded = Rounded(by.name, costs[by.name], costs[self._methods[0].name], energy)
        best = required(best)
        error, compensated, low_rank = best.error.error, None, None
        if weight.scheme.rank and not why_none(weight):
            target = by.target(problem)
            compensated, low_rank = compensate_by_data(weight, best, problem, target, rounded.cost, self._recipe.form)
            if low_rank is not None:
                error = squared_error(CompensatedWeight(best, low_rank), problem.rows)
                rounded = dataclasses.replace(rounded, cost=compensated.after)
        told = WeightError(error, rounded.cost, rounded.plain, best.error.energy)
        return keep(dataclasses.replace(best, error=told), rounded, compensated, low_rank)

    def _change(self, weight: LazyWeight, found: QuantizedWeight | CompensatedWeight) -> None:
        """Let the nodes that read a weight read it rounded."""
        rows = numbers_of(weight, found)
        for node in self._products.readers(weight):
            self._segments.change(node.name or "", as_read(node, rows))
