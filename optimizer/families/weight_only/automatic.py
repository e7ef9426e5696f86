"""The cheapest recipe with which a model loses no more than is allowed, found by measurement.

    1. weights rounded to nearest, without data,
    2. by the method of the recipe, with data,
    3. the same with scales of inputs by SmoothQuant folded into the model first, where there are such,
    4. with data, weights of several widths, see `mixed`: so many bytes as the last attempts let expect to be enough,
    5. the weights that cost most in 8 bits: as few as it takes, found by halving; with data at once all of them,
    6. where that is not enough, those that cost most in float.

A recipe that names a transform begins with it. Which weights cost most is known from the first steps: what a product
loses of its squares on data that was kept apart, over the bytes that more bits would take. Each attempt is a model that
was made and judged; the recipe that is found gives the same model again.
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
from ...graph.rewriting import required
from ...model_io.names import copy_of
from ...model_io.storage import weights_size
from ...planning.lazy_weight import LazyWeight
from ...planning.report import Attempt, size_text
from ...planning.result import Progress
from ...quantization.schemes import KERNEL_SCALES
from ...runtime.executor import ALONE, Executor
from ...settings.budget import seconds_of
from ...settings.override import Override
from ...settings.recipe import Recipe
from .mixed import MEASURED, Mixture
from .results import Results, take_results
from .rewrite import decide, rewrite
from .transforming import Folds, transform
from .with_data import method_of, round_with_data

_JUDGED = 8
"""Batches of the data whose outputs are compared where no metric is given."""
_STAGE = "automatic"
_MIXTURES = 4
"""Attempts with several widths."""
_AIM, _GOOD = 0.9, 0.75
"""Of the bound: what an attempt with several widths is to lose, and from where on no smaller model is looked for."""
_LESS = 0.8
_LEAST_POWER = 0.4
_MORE = 8
"""Bits of the weights that cost most."""
_BLOCK = 32
_LEAST = 1e-30


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        recipe: To follow, without a bound.
        results: Weights that were rounded by data; None where the recipe reads none.
        folds: Scales of the recipe's transform, where it has one.
        metric: That judged.
        bound: The most that may be lost.
        trail: All attempts, in order.
    """

    recipe: Recipe
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
        return {"method": "rtn" if self.results is None else method_of(self.recipe), "transform": self.recipe.transform,
                "overrides": self.recipe.overrides, **_UNBOUND}  # fmt: skip


ESCALATION = "smoothquant"
"""The transform that is tried where the recipe names none. Of a language model's products it found scales for some by
which GPTQ gained 1 to 3 dB, in a second each; those of AWQ gained nothing, and those of TEQ, which are better for most,
take ten times as long and more."""
_UNBOUND: dict[str, Any] = dict.fromkeys(
    ("max_drop", "max_kl", "metric", "text", "window", "stride", "tokens", "search_time")
)


@dataclasses.dataclass(frozen=True)
class _Made:
    """What an attempt was made by."""

    recipe: Recipe
    weights: list[LazyWeight]
    results: Results | None
    folds: Folds | None


def find_recipe(
    model: ir.Model, recipe: Recipe, data: Data | None, progress: Progress, source: str, executor: Executor = ALONE
) -> Found:
    """Find the cheapest recipe within the recipe's bound.

    Args:
        model: The float model, which clean-up went over; it is prepared, but stays in float.
        recipe: With a bound.
        data: To round by, and to compare outputs on where the recipe has no metric.
        progress: Told how the work goes on.
        source: What to call the model in an error.
        executor: Rounds weights and measures what they cost; attempts follow each other.

    Raises:
        UsageError: The metric does not fit the model.
        OnnxpressError: ONNX Runtime cannot run the model, or a metric fails.
    """
    feeds = [] if data is None or recipe.judged_by is not None else list(islice(iter(data), _JUDGED))
    decide(model, recipe)  # which prepares it
    metric = choose_metric(recipe.judged_by, model, feeds, source)
    return _Search(model, recipe, data, metric, progress, executor).run()


class _Search:
    def __init__(
        self, model: ir.Model, recipe: Recipe, data: Data | None, metric: Metric, progress: Progress,
        executor: Executor,
    ) -> None:  # fmt: skip
        assert recipe.max_loss is not None
        self._executor = executor
        self._model, self._data, self._metric, self._progress = model, data, metric, progress
        self._bound = recipe.max_loss
        self._deadline = math.inf
        if recipe.search_time is not None:
            self._deadline = time.perf_counter() + seconds_of(recipe.search_time)
        self._recipe = recipe.decided(**_UNBOUND)
        self._trail: list[Attempt] = []
        self._made: list[_Made] = []

    def run(self) -> Found:
        """All steps until one is enough; else the attempt of least loss."""
        recipe = self._recipe
        if recipe.method in (None, "rtn") and recipe.input_scales is None:
            self._try(f"{recipe.scheme} by rtn", recipe)
        by_data = self._data is not None and (recipe.method != "rtn" or recipe.input_scales is not None)
        for name in dict.fromkeys((recipe.transform, recipe.transform or ESCALATION)):
            if by_data and self._goes_on():
                self._try_with_data(f"{recipe.scheme} by {method_of(recipe)}", recipe.decided(transform=name))
        if by_data and self._goes_on():
            self._mix()
        if self._goes_on():
            self._raise(by_data=by_data)
        accepted = [index for index, attempt in enumerate(self._trail) if attempt.accepted]
        best = min(accepted, key=lambda index: self._trail[index].size or 0, default=self._best())
        made = self._made[best]
        return Found(made.recipe, made.results, made.folds, self._metric, self._bound, tuple(self._trail))

    def _best(self) -> int:
        """The attempt of least loss."""
        return min(range(len(self._trail)), key=self._loss)

    def _goes_on(self) -> bool:
        """Whether nothing is good enough yet, and there is time to try more."""
        return not any(attempt.accepted for attempt in self._trail) and self._has_time()

    def _has_time(self) -> bool:
        return not self._trail or time.perf_counter() < self._deadline

    def _loss(self, index: int) -> float:
        loss = self._trail[index].loss
        return math.inf if loss is None else loss

    def _mix(self) -> None:
        """More bits for the weights that are worth them: the fewest bytes, by what was lost so far and how."""
        best = self._best()
        made, model = self._made[best], copy_of(self._model)
        if made.folds is not None:
            made.folds.apply(model, made.recipe)
        data = required(self._data)
        folder = None if data.checkpoint is None else data.checkpoint / MEASURED
        mixture = Mixture(model, made.recipe, data, self._progress, folder=folder, executor=self._executor)
        seen = [(mixture.damage, self._loss(best))]
        sizes = {self._trail[-1].size}
        for _ in range(_MIXTURES):
            if self._trail[-1].accepted and seen[-1][1] > _GOOD * self._bound:
                return
            choice = mixture.choose_for(_damage_for(_AIM * self._bound, seen))
            if choice.size in sizes:
                choice = mixture.choose_for(_LESS * choice.damage)
            if choice.size in sizes or not self._has_time():
                return
            sizes.add(choice.size)
            self._try_with_data(f"{self._recipe.scheme} and others, {choice.bits:.2f} bits per weight", choice.recipe)
            seen.append((choice.damage, self._loss(-1)))

    def _raise(self, *, by_data: bool) -> None:
        """The weights that cost most in 8 bits, or, where that is not enough, in float."""
        weights, results = self._made[-1].weights, self._made[-1].results or Results()
        ranked = sorted(
            (each for each in weights if each.scheme.bits < _MORE or by_data),
            key=lambda each: _worth(each, results), reverse=True,
        )  # fmt: skip
        names = [[reader.node_name for reader in weight.readers] for weight in ranked]

        def eight(count: int) -> Recipe:
            return self._with([self._in_8_bits(name) for each in names[:count] for name in each])

        def in_float(count: int) -> Recipe:
            more = [self._in_8_bits(name) for each in names[count:] for name in each]
            return self._with(
                [*more, *(Override(match=name, keep_float=True) for each in names[:count] for name in each)]
            )

        scheme, whole = self._recipe.scheme, len(names)
        in_8_bits = f"{scheme}, {{}} of {whole} weights in {_MORE} bits"
        # With data, fewer bits than 8 were tried already.
        if not self._halve(whole if by_data else 0, whole, eight, in_8_bits):
            self._halve(1, whole - 1, in_float, f"{{}} of {whole} weights in float, the others in {_MORE} bits")

    def _halve(self, least: int, most: int, recipe: Callable[[int], Recipe], label: str) -> bool:
        """Find the fewest weights, from `least` on, with which a recipe is within the bound; whether `most` are."""

        def enough(count: int) -> bool:
            self._try(label.format(count), recipe(count))
            return self._trail[-1].accepted

        if most < 1 or not enough(most):
            return False
        low, high = max(least - 1, 0), most
        while high - low > 1 and self._has_time():
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return True

    def _try_with_data(self, label: str, recipe: Recipe) -> None:
        """Round by the method of the recipe, and judge; not where a transform that nobody named folds nothing."""
        begin = time.perf_counter()
        data, stage = required(self._data), f"tried {len(self._trail)}"
        copy, folds, results = copy_of(self._model), None, Results()
        if recipe.input_scales is not None:
            folds = transform(copy, recipe, data, self._progress, stage)
            label = f"{label} with {recipe.transform}"
            if not folds.scales and self._recipe.transform is None and recipe.overrides == self._recipe.overrides:
                return
        model = copy_of(copy)
        if method_of(recipe) != "rtn":
            weights = rewrite(copy, decide(copy, recipe)).weights
            results = round_with_data(copy_of(model), weights, data, recipe, self._progress, stage, self._executor)
        self._try(label, recipe, model, results, folds, time.perf_counter() - begin)

    def _try(
        self, label: str, recipe: Recipe, model: ir.Model | None = None, results: Results | None = None,
        folds: Folds | None = None, took: float = 0.0,
    ) -> None:  # fmt: skip
        """Make a model and judge it.

        Args:
            label: What it is, for people.
            recipe: What it is made by.
            model: The float model with scales folded; that without by default.
            results: Weights that are rounded already, where data is read.
            folds: The scales.
            took: Seconds until here.
        """
        self._progress(_STAGE, len(self._trail), len(self._trail) + 1)
        begin = time.perf_counter()
        copy = copy_of(model or self._model)
        weights = rewrite(copy, decide(copy, recipe)).weights
        take_results(weights, results or Results())
        value = self._metric(copy)
        loss = self._metric.loss(value)
        size = weights_size(copy)
        took += time.perf_counter() - begin
        self._trail.append(Attempt(label, self._metric.name, value, loss <= self._bound, size, took, loss))
        self._made.append(_Made(recipe, weights, results, folds))

    def _with(self, overrides: Sequence[Override]) -> Recipe:
        kept = self._recipe.transform if self._recipe.input_scales is None else None
        return self._recipe.decided(overrides=(*self._recipe.overrides, *overrides), transform=kept)

    def _in_8_bits(self, name: str) -> Override:
        """Of integers, in blocks as those of the scheme where there are any."""
        recipe = self._recipe
        return Override(
            match=name, scheme=f"int{_MORE}", block_size=_BLOCK if recipe.block_size == 0 else recipe.block_size,
            scale_type=None if recipe.scale_type in (None, *KERNEL_SCALES) else "half",
        )  # fmt: skip


def _damage_for(loss: float, seen: Sequence[tuple[float, float]]) -> float:
    """The damage with which a loss is to be expected, of damages and losses seen: c damage^p through the last two.

    Of one alone p is 1, as it is of a perplexity, which has lost about twice as much where errors have twice the
    squares.
    """
    (damage, lost), power = seen[-1], 1.0
    if not 0 < lost < math.inf:
        return damage / 2
    if len(seen) > 1:
        before, had = seen[-2]
        if 0 < had < math.inf and had != lost and before != damage:
            power = min(max(math.log(lost / had) / math.log(damage / before), _LEAST_POWER), 1.0)
    return float(damage * (loss / lost) ** (1 / power))


def _worth(weight: LazyWeight, results: Results) -> float:
    """What more bits of a weight win, over the bytes that they take."""
    result = results.get(weight.identity)
    if result is not None:
        lost = result.rounded.cost / max(result.rounded.energy, _LEAST)
    else:
        lost = weight.error.error / max(weight.error.energy, _LEAST) if weight.error is not None else 0.0
    return lost / (weight.weight.tensor.size * max(1, _MORE - weight.scheme.bits))
