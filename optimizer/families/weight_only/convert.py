"""Weights of 2 to 8 bits, activations as they are.

Data is asked for where somebody gives it. Then weights are rounded by what products and convolutions read of it, at
once; else when they are written.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

import onnx_ir as ir

from ...calibration import Data, Statistics
from ...graph.rewriting import required
from ...model_io.names import copy_of
from ...passes.fold_scales import FoldScales
from ...planning.lazy_weight import LazyWeight, gain, reports
from ...planning.plan import without_fused
from ...planning.result import ConversionResult, Progress
from ...runtime.executor import ALONE, PLAIN_MEANS, Executor, Means
from ...settings.budget import Budget, budget_of
from ...settings.recipe import Recipe
from ..family import Family, OpenData
from ..rotating import rotate
from ..transformer_fusion import finish_transformer
from .automatic import Found, find_recipe
from .compensation import compensate
from .mixed import MEASURED, Mixture
from .results import Results, take_results
from .rewrite import decide, rewrite
from .transforming import Folds, transform
from .with_data import method_of, reads_data, round_with_data

_ROUNDED = "rounded"
"""Folder of rounded weights in that of a checkpoint, where there are others beside it; with a budget, one for each."""


def convert(
    model: ir.Model, recipe: Recipe, data: OpenData | None, progress: Progress, source: str,
    means: Means = PLAIN_MEANS,
) -> ConversionResult:  # fmt: skip
    """Convert a model, as `Convert` says.

    Raises:
        UsageError: The metric does not fit the model.
        OnnxpressError: ONNX Runtime cannot run the model, or a metric fails.
    """
    opened = None if data is None else data()
    assert not isinstance(opened, Statistics), "the family's check refuses that"
    rotated = rotate(model, recipe)
    if recipe.budget is not None:
        budget = budget_of(recipe.budget)
        return rotated.tell(_within_budget(model, recipe, required(opened), budget, progress, means.executor))
    if recipe.max_loss is None:
        return rotated.tell(_convert(model, recipe, opened, progress, executor=means.executor))
    found = find_recipe(model, recipe, opened, progress, source, means.executor)
    data_read = opened if found.results is not None else None
    result = _convert(model, found.recipe, data_read, progress, found.results, found.folds)
    return rotated.tell(_with_trail(model, result, found))


def _convert(
    model: ir.Model, recipe: Recipe, data: Data | None, progress: Progress, known: Results | None = None,
    folds: Folds | None = None, stage: str = "", executor: Executor = ALONE,
) -> ConversionResult:  # fmt: skip
    if folds is not None:
        folds.apply(model, recipe)
    elif data is not None and recipe.input_scales is not None and known is None:
        folds = transform(model, recipe, data, progress, stage)
    decisions = decide(model, recipe)
    reads = data is not None and known is None and reads_data(recipe)
    original = copy_of(model) if reads else None
    rewritten = rewrite(model, decisions)
    lazy, results = rewritten.weights, Results() if known is None else known
    if data is not None and original is not None:
        folder = stage if folds is None or stage else _ROUNDED  # beside that of the transform
        results = round_with_data(original, lazy, data, recipe, progress, folder, executor)
    take_results(lazy, results)
    added = compensate(model, rewritten, results, recipe.form)
    fusion = finish_transformer(model, recipe)
    return ConversionResult(
        without_fused(decisions),
        weights=lambda: reports(lazy),
        gain=lambda: gain(lazy),
        warnings=[*rewritten.warnings, *added.warnings, *fusion.warnings],
        details=_details(lazy, results) | added.details | ({} if folds is None else folds.details) | fusion.details,
        rows=[*([] if folds is None else [folds.row]), *_rows(lazy, results), *added.rows, *fusion.rows],
        settled={} if data is None else {"method": method_of(recipe)},
        passes=_left(folds) | added.passes | fusion.passes,
    )


def _within_budget(
    model: ir.Model, recipe: Recipe, data: Data, budget: Budget, progress: Progress, executor: Executor
) -> ConversionResult:
    """With widths for each weight."""
    decide(model, recipe)  # which prepares it
    folder = None if data.checkpoint is None else data.checkpoint / MEASURED
    choice = Mixture(model, recipe, data, progress, budget, folder, executor).choose(budget)
    stage = f"{_ROUNDED}-{budget.most:.15g}{budget.unit}"
    result = _convert(model, choice.recipe, data, progress, stage=stage, executor=executor)
    return dataclasses.replace(
        result,
        details={**result.details, "mixed": choice.details()},
        rows=[("mixed", choice.line()), *result.rows],
        settled={**result.settled, "overrides": choice.recipe.overrides, "budget": None},
    )


def _with_trail(model: ir.Model, result: ConversionResult, found: Found) -> ConversionResult:
    """The result with what was tried, and its own value of the metric."""
    value = found.metric(model)
    loss = found.metric.loss(value)
    warnings = [] if loss <= found.bound else ["the bound on the metric was not met; this is the best that was tried"]
    return dataclasses.replace(
        result,
        warnings=[*result.warnings, *warnings],
        details={
            **result.details,
            "metric": {"name": found.metric.name, "float32": found.metric.reference, found.recipe.scheme: value},
        },
        rows=[
            *result.rows,
            ("accuracy", f"{found.metric.name} {value:.5f}, float32 {found.metric.reference:.5f}"),
            *(("tried", line) for line in found.lines()),
        ],
        settled={**result.settled, **found.settled},
        trail=list(found.trail),
    )


def _left(folds: Folds | None) -> dict[str, dict[str, str]]:
    return {} if folds is None or not folds.left else {FoldScales.__name__: folds.left}


def _details(weights: list[LazyWeight], results: Results) -> dict[str, object]:
    known = {weight.name: results[weight.identity].rounded for weight in weights if weight.identity in results}
    trained = {"trained": [dataclasses.asdict(each) for each in results.trained]} if results.trained else {}
    return {"rounded": {name: dataclasses.asdict(each) for name, each in known.items()}, **trained} if known else {}


def _rows(weights: list[LazyWeight], results: Results) -> list[tuple[str, str]]:
    """What became of weights with data, for a person."""
    count = Counter(results[weight.identity].rounded.method for weight in weights if weight.identity in results)
    if not count:
        return []
    methods = ", ".join(f"{number} by {method}" for method, number in count.most_common())
    rows = [("rounded", f"{methods}, each the one that costs its product least on data that it has not seen")]
    for trained in results.trained:
        lost = f"lost {trained.lost:.4g} {trained.unit} on data kept apart, {trained.start:.4g} before"
        rows.append(("trained", f"by {trained.method}, {trained.steps} steps: {lost}"))
    return rows


FAMILY = Family("weight-only", decide, convert)
