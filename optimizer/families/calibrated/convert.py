"""Calibrated integers and minifloats: which passes run in which order, and what is measured between them.

    prepare: float rewrites -> collect: what tensors hold -> plan -> place -> try steps -> restore moments
          -> ask ONNX Runtime what it made of integers -> leave in float what it would, what hurts and what is slower

Everything that is tried is built from the same float graph, which is changed in place only when all is decided.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from ...calibration import Data, Statistics, StatisticsSpec
from ...calibration.collect import collect
from ...calibration.variety import constant_tensors
from ...evaluation.metrics import COSINE, Metric, check_metric, choose_metric
from ...evaluation.sensitivity import MixedPrecision, Trial, search_mixed_precision
from ...model_io.names import copy_of
from ...model_io.storage import weights_size
from ...passes.base import GraphPass, Left
from ...passes.declare_functions import declare_functions
from ...passes.equalize_channels import EqualizeChannels
from ...passes.float8_products import warn_of_float8_products
from ...passes.place_minifloat import OPSET
from ...passes.preparation import prepare
from ...passes.restore_moments import RestoreMoments
from ...passes.smooth_matmul import SmoothMatMul, smoothable
from ...planning.int8_operators import Role
from ...planning.plan import Decision
from ...planning.plan_int8 import plan_int8
from ...planning.plan_minifloat import plan_minifloat
from ...planning.report import Accuracy, Attempt, weight_report
from ...planning.result import ConversionResult, Progress
from ...quantization.noise import IntegerNoise, MinifloatNoise, Noise
from ...runtime.executor import PLAIN_MEANS, Means
from ...runtime.int8_kernels import fallbacks, operators, optimized
from ...runtime.machine import made_for, reduces_range, warn_of_saturation
from ...settings.recipe import Recipe
from ..family import Family, OpenData
from ..unlike_parts import parts_of
from .builder import Builder, Calibrated, Candidate, Plan, products
from .faster import prove_faster, slower_layers
from .int8_builder import Int8Builder
from .minifloat_builder import MinifloatBuilder
from .trials import Trials, Verdict

_ROUNDS = 3  # of asking ONNX Runtime: what stays in float changes what its neighbours can be
_NAMED = 3  # nodes of a mixture
_FOR_THE_BOUND = "kept in float for the bound on the metric's drop"
_SKIPPED = {
    "smooth": "smoothing", "method": "GPTQ", "restore_moments": "restoring of moments",
}  # fmt: skip
"""What is done by default, but not without data."""
_HISTOGRAMS = ("percentile", "entropy", "mse")


def wanted(model: ir.Model, recipe: Recipe) -> dict[str, StatisticsSpec]:
    """What to collect of a prepared model, by tensor."""
    plan = _plan(model, recipe)
    smoothed = {} if recipe.smooth is False else smoothable(model, insert=recipe.smooth is True)
    histogram = recipe.ranges in _HISTOGRAMS
    found = {value.name or "": StatisticsSpec(histogram=histogram) for value in plan.tensors()}
    if not recipe.is_minifloat:
        found = dict.fromkeys(parts_of(model, plan.tensors()), StatisticsSpec(histogram=False)) | found
    for operator in plan.operators.values():
        if not operator.is_product or operator.constant is None:
            continue
        name = operator.node.inputs[0].name or ""  # type: ignore[union-attr]
        axis = 1 if operator.role is Role.CONV else -1
        gram = found[name].gram or (operator.role is Role.MATMUL and name in smoothed)
        found[name] = dataclasses.replace(found[name], channel_axis=axis, gram=gram)
        if operator.role is Role.CONV and recipe.equalize:
            result = operator.node.outputs[0].name or ""
            found[result] = dataclasses.replace(found.get(result, StatisticsSpec(histogram=False)), channel_axis=1)
    for name in {moved for between in smoothed.values() for moved in between} & found.keys():
        found[name] = dataclasses.replace(found[name], channel_axis=-1)
    return found


def calibrate(
    model: ir.Model, recipe: Recipe, data: Data | Statistics, left: Left, progress: Progress
) -> list[Calibrated]:
    """Collect what a recipe needs of a prepared model, and let channels exchange scales where it asks for that.

    `left` gets what is left of that.

    Returns:
        The model, which is not changed, and what each step that moves scales makes of the one before.
    """
    if isinstance(data, Statistics):
        data.check(model)
        return [Calibrated(model, data)]
    stages = [Calibrated(model, collect(model, data, wanted(model, recipe), progress=progress), data)]
    for step in ("equalize", "smooth"):
        moved = copy_of(stages[-1].model)
        if not recipe.reads(step) or not _move_scales(step, moved, stages[-1].statistics, recipe, left):
            continue
        again = wanted(moved, recipe)
        if step == "smooth":  # nothing reads these any more
            again = {name: dataclasses.replace(what, gram=False) for name, what in again.items()}
        stages.append(Calibrated(moved, collect(moved, data, again, progress=progress), data, step))
    return stages


def _move_scales(step: str, model: ir.Model, statistics: Statistics, recipe: Recipe, left: Left) -> bool:
    """Let channels exchange scales; whether any did."""
    if getattr(recipe, step) is False:
        return False
    move: GraphPass
    if step == "equalize":
        move = EqualizeChannels(statistics)
    else:
        move = SmoothMatMul(statistics, recipe.smooth is True, _noise(recipe))
    result = move(model)
    left |= {type(move).__name__: result.left} if result.left else {}
    return result.modified


def convert(
    model: ir.Model, recipe: Recipe, data: OpenData | None, progress: Progress, source: str,
    _means: Means = PLAIN_MEANS,
) -> ConversionResult:  # fmt: skip
    """Convert a model, as `Convert` says.

    Raises:
        UsageError: The metric does not fit the model.
        OnnxpressError: ONNX Runtime cannot run the model, a metric fails, or the model has to be faster and is not.
    """
    assert data is not None, "the family's check refuses that"
    opened = data()
    left = _prepare(model, recipe)
    decisions = _plan(model, recipe).decisions
    if not any(decision.taken for decision in decisions):
        return ConversionResult(decisions, tuple, passes=left)
    if recipe.judged_by is not None:
        check_metric(recipe.judged_by, model, source)
    trials = Trials(lambda stage, settings: _builder(stage, settings, progress), progress)
    builder = trials.settle(calibrate(model, recipe, opened, left, progress), recipe)
    kept = trials.refused_of(builder)
    if not recipe.is_minifloat:
        kept |= _kept_by_runtime(builder, kept)
    if recipe.only_if_faster:
        kept |= slower_layers(builder, kept)
    metric = choose_metric(recipe.judged_by, builder.model, builder.feeds, source) if builder.feeds else None
    search = None
    if metric is not None and recipe.max_loss is not None:
        search, mixtures = _search(builder, kept, metric, recipe.max_loss, progress)
        trials.trail += mixtures
        kept |= {name: _FOR_THE_BOUND for name in search.kept if name not in kept}
    seconds = prove_faster(builder, kept) if recipe.only_if_faster else None
    candidate, value = _choose(builder, kept, metric, search, trials)
    model.graph, model.ir_version = candidate.model.graph, candidate.model.ir_version
    model.functions.update(candidate.model.functions)
    declare_functions(model)
    outcome = _outcome(builder, candidate, metric, value, search, seconds, trials.verdicts)
    left |= {RestoreMoments.__name__: dict(candidate.left)} if candidate.left else {}
    return dataclasses.replace(outcome, passes=left, trail=trials.trail)


def decide(model: ir.Model, recipe: Recipe) -> list[Decision]:
    """What `convert` would decide of a model, which CleanUp went over, before it sees data; it is prepared for that."""
    _prepare(model, recipe)
    return _plan(model, recipe).decisions


def _prepare(model: ir.Model, recipe: Recipe) -> Left:
    return prepare(model, recipe, opset=OPSET) if recipe.is_minifloat else prepare(model, recipe)


def _plan(model: ir.Model, recipe: Recipe) -> Plan:
    return plan_minifloat(model, recipe) if recipe.is_minifloat else plan_int8(model, recipe)


def _noise(recipe: Recipe) -> Noise:
    return MinifloatNoise(*recipe.formats) if recipe.is_minifloat else IntegerNoise()


def _builder(calibrated: Calibrated, recipe: Recipe, progress: Progress) -> Builder[Any]:
    kind = MinifloatBuilder if recipe.is_minifloat else Int8Builder
    return kind(calibrated, recipe, progress)


def _kept_by_runtime(builder: Builder[Any], refused: Mapping[str, str]) -> dict[str, str]:
    """Products that ONNX Runtime would compute in float between two conversions, beside those that it refuses."""
    kept: dict[str, str] = {}
    for _ in range(_ROUNDS):
        model, products = builder.unrestored({**refused, **kept})
        found = fallbacks(optimized(model), products)
        if not found:
            break
        kept |= {name: f"ONNX Runtime makes {ran} of its int8 form" for name, ran in found.items()}
    return kept


def _search(
    builder: Builder[Any], kept: Mapping[str, str], metric: Metric, max_drop: float, progress: Progress
) -> tuple[MixedPrecision, list[Attempt]]:
    """The fewest products in float with which the metric is within the bound, and all that was tried."""
    nodes = products(builder.plan(copy_of(builder.model), kept))
    begun: list[float] = []
    measured: list[tuple[int, float]] = []  # bytes and seconds of each trial

    def build(chosen: frozenset[str]) -> ir.Model:
        begun.append(time.perf_counter())
        return builder.unrestored({**dict.fromkeys(chosen, _FOR_THE_BOUND), **kept})[0]

    def score(model: ir.Model) -> float:
        value = metric(model)
        measured.append((weights_size(model), time.perf_counter() - begun[-1]))
        return value

    search = search_mixed_precision(
        build, score, nodes, reference=metric.reference, max_drop=max_drop, drop=metric.loss, always=kept,
        progress=progress,
    )  # fmt: skip
    trail = [Attempt("float32", metric.name, metric.reference, True, weights_size(builder.model))]
    for trial, cost in zip(search.trials, measured, strict=True):
        trail.append(Attempt(_mixture(trial, nodes), metric.name, trial.value, trial.accepted, *cost))
    return search, trail


def _mixture(trial: Trial, nodes: Sequence[str]) -> str:
    """A trial for a person, by the shorter list of names."""
    rounded = [name for name in nodes if name not in trial.kept]
    what, names = ("rounded", rounded) if trial.step == "alone" else ("in float", list(trial.kept))
    if not names:
        return "all rounded"
    listed = ", ".join(names[:_NAMED])
    return f"{what}: {listed}" + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _choose(
    builder: Builder[Any],
    kept: Mapping[str, str],
    metric: Metric | None,
    search: MixedPrecision | None,
    trials: Trials,
) -> tuple[Candidate, float]:
    """The model with or without restored moments, and its metric; NaN where there is none.

    The moments are those of the calibration data, so on other data that can harm, too: a metric that was given decides,
    else the outputs do.
    """
    plain = builder.build(kept)
    asked = builder.recipe.restore_moments
    if asked is False or not builder.feeds:
        return plain, _value(metric, plain) if search is None else search.best
    began = time.perf_counter()
    restored = builder.restored(plain)
    value = _value(metric, restored)
    if asked is None and metric is not None and builder.recipe.judged_by is not None:
        other = _value(metric, plain) if search is None else search.best
        if not metric.is_better(value, other):
            return plain, other
    else:
        without, with_them = (trials.noise_of(builder, each.model) for each in (plain, restored))
        if not trials.keeps("restore_moments", with_them, without, began, asked=asked is True):
            return plain, _value(metric, plain) if search is None else search.best
    return restored, value


def _label(recipe: Recipe) -> str:
    return "minifloat" if recipe.is_minifloat else "int8"


def _by_default(recipe: Recipe, step: str) -> bool:
    """Whether a scheme takes a step where nobody says and there is data."""
    return recipe.reads(step) and getattr(recipe, step) is None


def _value(metric: Metric | None, candidate: Candidate) -> float:
    return math.nan if metric is None else metric(candidate.model)


def _accuracy(metric: Metric, value: float, batches: int) -> str:
    own = f", on the first {batches} batches of the calibration data" if metric.name == COSINE else ""
    if metric.name == COSINE and math.isnan(value):
        return f"no {metric.name}: some are of another length than in float{own}; give a metric"
    return f"{metric.name} {value:.5f}, float32 {metric.reference:.5f}{own}"


def _outcome(
    builder: Builder[Any], candidate: Candidate, metric: Metric | None, value: float,
    search: MixedPrecision | None, seconds: tuple[float, float] | None, verdicts: Sequence[Verdict],
) -> ConversionResult:  # fmt: skip
    details: dict[str, Any] = {}
    rows: list[tuple[str, str]] = []
    warnings = [*candidate.warnings, *constant_tensors(builder.observed()), *warn_of_float8_products(candidate.model)]
    if not builder.recipe.is_minifloat:
        reduced = reduces_range(builder.recipe)
        warnings += warn_of_saturation(reduced)
        details["made_for"] = made_for(reduced)
        rows.append(("made for", made_for(reduced)))
        details["kernels"] = kernels = operators(optimized(candidate.model))
        rows.append(("ONNX Runtime runs", ", ".join(f"{count} {op}" for op, count in kernels.items())))
    if metric is not None:
        details["metric"] = {"name": metric.name, "float32": metric.reference, _label(builder.recipe): value}
        rows.append(("accuracy", _accuracy(metric, value, len(builder.feeds))))
    if seconds is not None:
        details["seconds"] = dict(zip(("float32", "int8"), seconds, strict=True))
        rows.append(("run", f"{1e3 * seconds[1]:.2f} ms, float32 {1e3 * seconds[0]:.2f} ms"))
    if not builder.feeds:
        skipped = [what for name, what in _SKIPPED.items() if _by_default(builder.recipe, name)]
        listed = " and ".join(filter(None, (", ".join(skipped[:-1]), *skipped[-1:])))
        rows += [("skipped", f"{listed}, for which there must be data")] if skipped else []
    if search is not None:
        details["mixed_precision"] = dataclasses.asdict(search)
        rows.append(("tried", f"{len(search.trials)} mixtures, {len(search.kept)} products stay in float"))
        if not search.met:
            warnings.append("the bound on the metric's drop was not met; this is the best mixture that was tried")
    if verdicts:
        details["harmful_steps"] = [dataclasses.asdict(verdict) for verdict in verdicts]
        rows += [("tried", verdict.line()) for verdict in verdicts if not verdict.kept]
        warnings += [verdict.line() for verdict in verdicts if verdict.kept]
    weights = tuple(
        weight_report(name, candidate.readers[name], rounded) for name, rounded in candidate.weights.items()
    )
    accuracy = None if metric is None else Accuracy(metric.name, value, metric.reference)
    return ConversionResult(
        candidate.decisions, lambda: weights, warnings=warnings, details=details, rows=rows, accuracy=accuracy
    )


INT8_STATIC, MINIFLOAT_STATIC = (Family(name, decide, convert) for name in ("static", "minifloat-static"))
