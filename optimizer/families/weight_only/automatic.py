"""The cheapest recipe with which a model loses no more than is allowed, found by measurement.

    1. weights rounded to nearest, without data,
    2. by the method of the recipe, with data,
    3. the same with scales of inputs by SmoothQuant folded into the model first, where there are such,
    4. the weights that cost most in 8 bits: as few as it takes, found by halving; should all not be enough, then
    5. those in float.

A recipe that names a transform begins with it. Which weights cost most is known from the second step, or from the third
where that was better: what a product loses of its squares on data that was kept apart, over the bytes that more bits
would take. Each attempt is a model that was made and judged. Weights are rounded once for all attempts; the recipe that
is found is then followed from the start, so that it gives the same model again.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import onnx_ir as ir

from ...calibration import Data
from ...evaluation.metrics import Metric, choose_metric, loss_text
from ...model_io.external_data import nbytes
from ...model_io.names import copy_of
from ...model_io.storage import initializers
from ...planning.lazy_weight import LazyWeight
from ...planning.report import Attempt, size_text
from ...planning.result import Progress
from ...settings.recipe import Override, Recipe
from .results import Results
from .rewrite import decide, rewrite
from .transforming import Folds, transform
from .with_data import method_of, round_with_data

_JUDGED = 8
"""Batches of the data whose outputs are compared where no metric is given."""
_STAGE = "automatic"
_MORE = 8
"""Bits of the weights that cost most."""
_BLOCK = 32
_LEAST = 1e-30


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        recipe: To follow, without a bound.
        reads_data: Whether it has weights rounded by data.
        results: Rounded weights that are those of the recipe; None where it has to be followed from the start.
        folds: Scales of the recipe's transform, where there are results and it has one.
        metric: That judged.
        bound: The most that may be lost.
        trail: All attempts, in order.
    """

    recipe: Recipe
    reads_data: bool
    results: Results | None
    folds: Folds | None
    metric: Metric
    bound: float
    trail: tuple[Attempt, ...]

    def lines(self) -> list[str]:
        """All attempts, for a person."""
        return [self._line(attempt) for attempt in self.trail]

    def _line(self, attempt: Attempt) -> str:
        assert attempt.loss is not None
        lost = loss_text(attempt.loss, in_nats=self.metric.in_nats)
        mark = "within the bound" if attempt.accepted else "too much"
        return f"{attempt.recipe}: {size_text(attempt.size or 0)}, lost {lost}, {mark} ({attempt.seconds:.0f} s)"

    @property
    def settled(self) -> dict[str, Any]:
        """Settings for whoever repeats it without searching."""
        return {"method": method_of(self.recipe) if self.reads_data else "rtn", "transform": self.recipe.transform,
                "overrides": self.recipe.overrides, **_UNBOUND}  # fmt: skip


ESCALATION = "smoothquant"
"""The transform that is tried where the recipe names none. Of a language model's products it found scales for some by
which GPTQ gained 1 to 3 dB, in a second each; those of AWQ gained nothing, and those of TEQ, which are better for most,
take ten times as long and more."""
_UNBOUND: dict[str, Any] = dict.fromkeys(("max_drop", "max_kl", "metric", "text", "window", "stride", "tokens"))


def find_recipe(model: ir.Model, recipe: Recipe, data: Data | None, progress: Progress, source: str) -> Found:
    """Find the cheapest recipe within the recipe's bound.

    Args:
        model: The float model, which clean-up went over; it is prepared, but stays in float.
        recipe: With a bound.
        data: To round by, and to compare outputs on where the recipe has no metric.
        progress: Told how the work goes on.
        source: What to call the model in an error.

    Raises:
        UsageError: The metric does not fit the model.
        OnnxpressError: ONNX Runtime cannot run the model, or a metric fails.
    """
    feeds = [] if data is None or recipe.judged_by is not None else list(islice(iter(data), _JUDGED))
    decide(model, recipe)  # which prepares it
    metric = choose_metric(recipe.judged_by, model, feeds, source)
    return _Search(model, recipe, data, metric, progress).run()


@dataclasses.dataclass(frozen=True)
class _Base:
    """What attempts are made of.

    Attributes:
        model: The float model, with scales folded or not.
        recipe: That it is rounded by.
        by_data: Whether that reads data.
        results: Weights that were rounded.
        folds: The scales.
    """

    model: ir.Model
    recipe: Recipe
    by_data: bool
    results: Results
    folds: Folds | None = None


class _Search:
    def __init__(self, model: ir.Model, recipe: Recipe, data: Data | None, metric: Metric, progress: Progress) -> None:
        assert recipe.max_loss is not None
        self._data, self._metric, self._progress = data, metric, progress
        self._bound = recipe.max_loss
        self._recipe = recipe.decided(**_UNBOUND)
        self._plain = self._base = _Base(model, self._recipe, by_data=False, results={})
        self._trail: list[Attempt] = []
        self._recipes: list[tuple[Recipe, _Base]] = []

    def run(self) -> Found:
        """All steps until one is enough; else the attempt of least loss."""
        recipe = self._recipe
        weights: list[LazyWeight] = []
        if recipe.method in (None, "rtn") and recipe.transform is None:
            weights = self._try(f"{recipe.scheme} by rtn", recipe)
        if self._data is not None and (recipe.method != "rtn" or recipe.transform is not None):
            for name in dict.fromkeys((recipe.transform, recipe.transform or ESCALATION)):
                if not self._enough():
                    weights = self._round(recipe.decided(transform=name), self._data) or weights
        if not self._enough():
            self._raise(weights)
        accepted = [index for index, attempt in enumerate(self._trail) if attempt.accepted]
        best = min(accepted, key=lambda index: self._trail[index].size or 0, default=None)
        if best is None:
            best = min(range(len(self._trail)), key=self._loss)
        found, base = self._recipes[best]
        known = found.overrides == recipe.overrides or not base.by_data
        return Found(
            found, base.by_data, base.results if known else None, base.folds if known else None, self._metric,
            self._bound, tuple(self._trail),
        )  # fmt: skip

    def _loss(self, index: int) -> float:
        loss = self._trail[index].loss
        return math.inf if loss is None else loss

    def _enough(self) -> bool:
        return any(attempt.accepted for attempt in self._trail)

    def _round(self, recipe: Recipe, data: Data) -> list[LazyWeight]:
        """By the method of a recipe, with data; nothing where its transform folds no scales, and it would be the same.

        What was better so far is what later attempts are made of.
        """
        begin = time.perf_counter()
        method, label, stage = method_of(recipe), f"{recipe.scheme} by {method_of(recipe)}", "tried"
        copy, folds = copy_of(self._plain.model), None
        if recipe.transform is not None:
            label, stage = f"{label} with {recipe.transform}", f"tried-{recipe.transform}"
            folds = transform(copy, recipe, data, self._progress, stage)
            if not folds.scales and self._recipe.transform is None:
                return []
        base, results = copy_of(copy), {}
        if method != "rtn":
            weights = rewrite(copy, decide(copy, recipe)).weights
            results = round_with_data(base, weights, data, method, self._progress, stage)
        before, least = self._base, min(map(self._loss, range(len(self._trail))), default=math.inf)
        self._base = _Base(base, recipe, by_data=True, results=results, folds=folds)
        made = self._try(label, recipe, took=time.perf_counter() - begin)
        if before.by_data and self._loss(-1) >= least:
            self._base = before
            return []
        return made

    def _raise(self, weights: Sequence[LazyWeight]) -> None:
        """The weights that cost most in 8 bits, or, where that is not enough, in float."""
        ranked = sorted((each for each in weights if each.scheme.bits < _MORE), key=self._worth, reverse=True)
        names = [[reader.node_name for reader in weight.readers] for weight in ranked]

        def eight(count: int) -> Recipe:
            return self._with([self._in_8_bits(name) for each in names[:count] for name in each])

        def in_float(count: int) -> Recipe:
            more = [self._in_8_bits(name) for each in names[count:] for name in each]
            return self._with(
                [*more, *(Override(match=name, keep_float=True) for each in names[:count] for name in each)]
            )

        scheme, whole = self._recipe.scheme, len(names)
        if not self._halve(whole, eight, f"{scheme}, {{}} of {whole} weights in {_MORE} bits"):
            self._halve(whole - 1, in_float, f"{{}} of {whole} weights in float, the others in {_MORE} bits")

    def _halve(self, most: int, recipe: Callable[[int], Recipe], label: str) -> bool:
        """Find the fewest weights with which a recipe is within the bound, where none are too few; whether most are."""

        def enough(count: int) -> bool:
            self._try(label.format(count), recipe(count))
            return self._trail[-1].accepted

        if most < 1 or not enough(most):
            return False
        low, high = 0, most
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return True

    def _try(self, label: str, recipe: Recipe, *, took: float = 0.0) -> list[LazyWeight]:
        """Make a model of the base and judge it; the weights that it has."""
        self._progress(_STAGE, len(self._trail), len(self._trail) + 1)
        begin = time.perf_counter()
        copy, results = copy_of(self._base.model), self._base.results
        weights = rewrite(copy, decide(copy, recipe)).weights
        for weight in weights:
            if weight.identity in results:
                weight.take(results[weight.identity].read, results[weight.identity].rounded.method)
        value = self._metric(copy)
        loss = self._metric.loss(value)
        size = sum(nbytes(each.const_value) for each in initializers(copy) if each.const_value is not None)
        took += time.perf_counter() - begin
        self._trail.append(Attempt(label, self._metric.name, value, loss <= self._bound, size, took, loss))
        self._recipes.append((recipe, self._base))
        return weights

    def _worth(self, weight: LazyWeight) -> float:
        """What more bits of a weight win, over the bytes that they take."""
        result = self._base.results.get(weight.identity)
        if result is not None:
            lost = result.rounded.cost / max(result.rounded.energy, _LEAST)
        else:
            lost = weight.error.error / max(weight.error.energy, _LEAST) if weight.error is not None else 0.0
        return lost / (weight.weight.tensor.size * (_MORE - weight.scheme.bits))

    def _with(self, overrides: Sequence[Override]) -> Recipe:
        return self._base.recipe.decided(overrides=(*self._recipe.overrides, *overrides))

    def _in_8_bits(self, name: str) -> Override:
        """Of integers, in blocks as those of the scheme where there are any."""
        recipe = self._recipe
        return Override(
            match=name, scheme=f"int{_MORE}", block_size=_BLOCK if recipe.block_size == 0 else recipe.block_size,
            scale_type=None if recipe.scale_type in (None, "float32", "float16") else "float32",
        )  # fmt: skip
