"""Mixed precision by measurement: the fewest layers left in float with which an int8 model is good enough.

The drop of a model is relative to the float model: d = (reference - value) / |reference|. With a set K of layers in
float the int8 model has the drop d(K), and wanted is a small K with d(K) <= max_drop. Each d(K) costs a model and a run
of the metric, so their number is bounded:

1. All layers in int8. Most models end here, after one trial.
2. Sensitivity: the drop of each layer where it alone is int8, d(all but it). Where that would take too many trials, of
   groups of neighbours, each of its layers counted with an equal share; then the group of the largest drop is cut into
   halves, and so on while trials are left for it.
3. K is as many of the most sensitive layers as it takes: a binary search over that number. It supposes that more layers
   in float do no harm. Where that fails, so that even all but one are too few, every number is tried from the smallest.
4. Layers of K, the least sensitive first, go back to int8 where the bound still holds: in groups as large as the trials
   that are left demand, then in smaller ones, and one by one until none can go back alone or no trial is left.

Were drops to add up, step 3 would give the fewest layers there can be; step 4 mends what does not add up. Whatever is
supposed, the answer was measured: it is the trial of fewest layers in float among those within the bound.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Generic, TypeVar

from ..errors import OnnxpressError, UsageError

M = TypeVar("M")

Layers = frozenset[str]

_RESERVE = 5  # the part of the trials that step 4 has for certain
_STAGE = "mixed precision"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One model that was made and judged.

    Attributes:
        kept: Layers in float, in the order they were given.
        value: The metric.
        drop: What is lost, relative to the float model where the metric has no unit of its own; infinite for NaN.
        accepted: Whether the drop is within the bound.
        step: What it was for: "all" in int8, sensitivity of those "alone" in int8, the "prefix" of the ranking in
            float, or the "release" of some of these.
    """

    kept: tuple[str, ...]
    value: float
    drop: float
    accepted: bool
    step: str


@dataclasses.dataclass(frozen=True)
class MixedPrecision:
    """What the search found.

    Attributes:
        kept: Layers left in float, in the order they were given.
        met: Whether the bound holds. If not, `kept` is that of the trial with the smallest drop.
        reference: Metric of the float model.
        best: Metric of the int8 model with `kept` in float.
        ranking: Layers with the drop of each, the most sensitive first; empty where it was not needed.
        trials: All that was tried, in order.
    """

    kept: tuple[str, ...]
    met: bool
    reference: float
    best: float
    ranking: tuple[tuple[str, float], ...]
    trials: tuple[Trial, ...]


def relative_drop(reference: float, value: float) -> float:
    """What is lost of a metric, as a share of the float model's; infinite where that is 0 or the value NaN."""
    if math.isnan(value):
        return math.inf
    lost = reference - value
    if reference == 0:
        return math.inf if lost > 0 else 0.0
    return lost / abs(reference)


def search_mixed_precision(
    build: Callable[[frozenset[str]], M],
    score: Callable[[M], float],
    nodes: Sequence[str],
    *,
    reference: float,
    max_drop: float,
    drop: Callable[[float], float] | None = None,
    always: Collection[str] = (),
    budget: int = 40,
    progress: Callable[[str, int, int], None] = lambda _stage, _done, _total: None,
) -> MixedPrecision:
    """Find the fewest layers to leave in float for a metric to drop no more than is allowed.

    Args:
        build: Makes the int8 model with the layers of these names in float. At least one of `nodes` is int8.
        score: The metric of such a model.
        nodes: Names of the layers that can be int8.
        reference: Metric of the float model.
        max_drop: Largest drop: 0.01 allows 1 % of the reference.
        drop: What a value has lost; `relative_drop`, for which more is better, by default.
        always: Names that stay in float whatever is found.
        budget: Most models that are made.
        progress: Told how the work goes on.

    Returns:
        The layers to keep, whether the bound holds with them, and the trail. The same scores give the same answer.

    Raises:
        UsageError: `max_drop` is negative or no number, or `budget` is less than one.
        OnnxpressError: The reference is no finite number.
    """
    if not max_drop >= 0:
        raise UsageError(f"the largest drop is {max_drop}; it has to be 0 or more")
    if budget < 1:
        raise UsageError(f"a budget of {budget} trials; at least one model has to be made")
    if not math.isfinite(reference):
        raise OnnxpressError(f"the metric of the float model is {reference}; nothing can be measured against it")
    drop = drop or functools.partial(relative_drop, reference)
    search = _Search(build, score, nodes, drop, max_drop, frozenset(always), budget, progress)
    found = search.run()
    return MixedPrecision(found.kept, found.accepted, reference, found.value, search.ranking, tuple(search.trials))


class _ExhaustedError(Exception):
    """The budget is spent."""


class _Search(Generic[M]):
    """The trials so far, each state at most once."""

    def __init__(
        self, build: Callable[[Layers], M], score: Callable[[M], float], nodes: Sequence[str],
        drop: Callable[[float], float], max_drop: float, always: Layers, budget: int,
        progress: Callable[[str, int, int], None],
    ) -> None:  # fmt: skip
        self._build, self._score, self._progress = build, score, progress
        self._drop, self._max_drop, self._budget = drop, max_drop, budget
        self._names = tuple(dict.fromkeys([*nodes, *sorted(always)]))
        self._always = always
        self._free = [name for name in dict.fromkeys(nodes) if name not in always]
        self._known: dict[Layers, Trial] = {}
        self.trials: list[Trial] = []
        self.ranking: tuple[tuple[str, float], ...] = ()

    def run(self) -> Trial:
        """All steps; the best trial."""
        first = self._try(self._always, "all")
        if not first.accepted and len(self._free) > 1:
            try:
                self._rank()
                self._shorten()
                self._release()
            except _ExhaustedError:
                pass
        self._progress(_STAGE, self._budget, self._budget)
        return self._best() or min(self.trials, key=lambda trial: (trial.drop, len(trial.kept)))

    def _best(self) -> Trial | None:
        """Of the trials within the bound."""
        accepted = (trial for trial in self.trials if trial.accepted)
        return min(accepted, key=lambda trial: (len(trial.kept), trial.drop), default=None)

    def _try(self, kept: Layers, step: str) -> Trial:
        if kept in self._known:
            return self._known[kept]
        if len(self.trials) >= self._budget:
            raise _ExhaustedError
        self._progress(_STAGE, len(self.trials), self._budget)
        value = float(self._score(self._build(kept)))
        drop = self._drop(value)
        names = tuple(name for name in self._names if name in kept)
        trial = Trial(names, value, drop, drop <= self._max_drop, step)
        self._known[kept] = trial
        self.trials.append(trial)
        return trial

    def _rank(self) -> None:
        """Step 2. Enough trials are left over for the steps behind it."""
        steps = math.ceil(math.log2(len(self._free))) + 1
        left = self._budget - len(self.trials) - steps - self._budget // _RESERVE
        shares = dict.fromkeys(self._free, 0.0)
        groups: dict[tuple[str, ...], float] = {}
        for group in self._first_groups(left):
            groups[group] = self._alone(group)
            left -= 1
        while left >= 2 and (worst := _worst(groups)) is not None:
            del groups[worst]
            middle = len(worst) // 2
            for half in (worst[:middle], worst[middle:]):
                groups[half] = self._alone(half)
            left -= 2
        for group, drop in groups.items():
            shares.update(dict.fromkeys(group, drop / len(group)))
        # Equal ones stay in the order of the graph.
        self.ranking = tuple(sorted(shares.items(), key=lambda item: -item[1])) if groups else ()

    def _first_groups(self, trials: int) -> Iterator[tuple[str, ...]]:
        """Layers one by one, or in as many groups of neighbours as leave half of the trials to cut the worst."""
        if trials < 2:
            return
        size = len(self._free)
        count = size if size <= trials else max(2, trials // 2)
        for index in range(count):
            yield tuple(self._free[index * size // count : (index + 1) * size // count])

    def _alone(self, group: tuple[str, ...]) -> float:
        return self._try(frozenset(self._names).difference(group), "alone").drop

    @property
    def _order(self) -> list[str]:
        """The most sensitive first; in the order of the graph where the budget is too small to know."""
        return [name for name, _ in self.ranking] or self._free

    def _prefix(self, length: int) -> Trial:
        return self._try(self._always.union(self._order[:length]), "prefix")

    def _shorten(self) -> None:
        """Step 3: `low` layers in float are too few; `high` are enough, or all but one are not known to be."""
        low, high = 0, len(self._free) - 1
        while high - low > 1:
            middle = (low + high) // 2
            if self._prefix(middle).accepted:
                high = middle
            else:
                low = middle
        if not self._prefix(high).accepted:
            for length in range(1, high):
                if self._prefix(length).accepted:
                    break

    def _release(self) -> None:
        """Step 4."""
        best = self._best()
        if best is None:
            return
        kept = frozenset(best.kept)
        size = math.ceil(len(kept - self._always) / max(1, self._budget - len(self.trials)))
        while True:
            smaller = self._release_groups(kept, size)
            if size == 1 and smaller == kept:
                return
            kept, size = smaller, max(1, size // 2)

    def _release_groups(self, kept: Layers, size: int) -> Layers:
        """What is left of `kept` when each group of this size was tried."""
        names = [name for name in reversed(self._order) if name in kept]
        for begin in range(0, len(names), size):
            fewer = kept.difference(names[begin : begin + size])
            if self._try(fewer, "release").accepted:
                kept = fewer
        return kept


def _worst(groups: dict[tuple[str, ...], float]) -> tuple[str, ...] | None:
    """The group of several layers with the largest drop, the first of equal ones."""
    return max((group for group in groups if len(group) > 1), key=lambda group: groups[group], default=None)
