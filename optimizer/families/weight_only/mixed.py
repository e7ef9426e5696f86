"""Widths of weights by what each costs the model: many bits where few would do harm.

Each weight has candidates, of more and fewer bits. What one does to the outputs of the model is taken to be

    damage = sensitivity of the weight * what its product loses by the candidate,

the first measured in the whole model (`sensitivity`), the second by the moments of its inputs, both on the float path,
with weights rounded to nearest under these moments, and the product of low rank that a candidate has
beside it. That damages of weights add up is what makes it cheap; it holds for errors that are small (Malinovskii et al.
2024, "Pushing the Limits of Large Language Model Quantization via the Linearity Theorem", eq. 4, with errors of weights
in place of those of products). `allocate` then finds the candidates.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ...calibration import Data
from ...calibration.collect import survey
from ...calibration.segments import Segments
from ...errors import UsageError, option
from ...graph.constants import mark_constants
from ...model_io.names import copy_of
from ...planning.report import size_text
from ...planning.result import Progress
from ...quantization.allocation import allocate
from ...quantization.blas import one_thread_each
from ...quantization.methods import METHODS, Problem
from ...quantization.quantized_weight import Floats
from ...quantization.schemes import WeightScheme
from ...runtime.executor import ALONE, Executor, Shared
from ...settings.budget import Budget
from ...settings.override import Override
from ...settings.recipe import Recipe
from ..kept_files import Files
from .candidates import Candidate, candidates_of, key_of
from .compensation import Factors, costs_by_rank, factors_of
from .product_time import product_time
from .products import Job, Layout, Moments, Products, layout_of, rows_of
from .results import describe
from .sensitivity import Sensitivity, with_exchangeable

MEASURED = "measured"
"""Folder of a measurement in that of a checkpoint."""
_ERRORS = "errors"
"""The same where a budget holds nothing back, so that errors alone are measured."""
_STAGE = "mixed"
_METHOD = METHODS["search"]
_LEAST = 1e-30
_CLOSE = 1e-3


@dataclasses.dataclass(frozen=True)
class Choice:
    """One candidate of each weight.

    Attributes:
        recipe: Which says so.
        damage: To expect of the outputs.
        size: Bytes of the weights of the whole model.
        bits: Per weight, scales and zero points counted.
        widths: Of each scheme, how many weights have it.
        is_free: Whether each weight has its best candidate, so that the budget held nothing back.
    """

    recipe: Recipe
    damage: float
    size: int
    bits: float
    widths: dict[str, int]
    is_free: bool = False

    def details(self) -> dict[str, object]:
        """For a report."""
        return {"bits": self.bits, "weights": self.widths, "expected damage": self.damage}

    def line(self) -> str:
        """For a person."""
        parts = ", ".join(f"{count} in {name}" for name, count in sorted(self.widths.items()))
        free = "; each as good as there is, the budget holds nothing back" if self.is_free else ""
        return f"{self.bits:.2f} bits per weight: {parts}{free}"


class Mixture:
    """What the weights of a model would cost and do by candidate.

    Args:
        model: The float model, prepared by `decide`; it is not changed.
        recipe: Whose scheme is one of the candidates of each weight.
        data: Batches of inputs.
        progress: Told how the work goes on.
        budget: Refused before anything is measured where its bytes or bits are too few.
        folder: Where what was measured is kept, and an interrupted run goes on; None for nowhere.
        executor: Measures, of each weight by itself; the float model runs here.

    Raises:
        UsageError: The budget cannot be met, or the folder is that of another run.
        OnnxpressError: ONNX Runtime cannot run the model, or what was measured cannot be kept.
    """

    def __init__(
        self, model: ir.Model, recipe: Recipe, data: Data, progress: Progress, budget: Budget | None = None,
        folder: Path | None = None, executor: Executor = ALONE,
    ) -> None:  # fmt: skip
        self._recipe = recipe
        ways, self._whole = candidates_of(model, recipe)
        self._candidates: list[list[Candidate]] = list(ways.values())
        holds_back = True
        if budget is not None and budget.unit != "ms":
            costs, most = self._costs(budget)  # which refuses one that cannot be met
            holds_back = sum(map(max, costs)) > most
        survey(data, progress)
        copy = copy_of(model)
        mark_constants(copy)
        self._candidates = []
        self._sensitivities: list[float] = []
        with Segments(copy, data) as segments:
            products = Products(copy, segments, (_METHOD,))
            jobs = products.jobs([each[0].weight for each in ways.values()])
            described = "" if folder is None else _described(copy, [ways[key_of(job.weight)] for job in jobs], data)
            files = Files(folder if folder is None or holds_back else folder.with_name(_ERRORS), described)
            missing = not all(files.has(_file(job)) for job in jobs)
            nodes = [node for job in jobs for node in products.readers(job.weight)]
            measures = holds_back and missing
            asked = executor.share_made(with_exchangeable(copy, data, nodes), Sensitivity) if measures else None

            def calls() -> Iterator[tuple[Any, ...]]:
                for job in jobs:
                    segments.advance(job.cut)  # piece by piece also where all is known: so the same bytes come out
                    if not files.has(_file(job)):
                        moments = products.shared_moments_of(job, executor)
                        yield _call(job, ways[key_of(job.weight)], recipe.form, products, moments, asked)

            missed = [job for job in jobs if not files.has(_file(job))]
            found = executor.map(_measure, calls(), len(jobs))
            progress(_STAGE, len(jobs) - len(missed), len(jobs))
            for done, (job, measured) in enumerate(zip(missed, found, strict=True), 1):
                files.keep(_file(job), measured, {})
                progress(_STAGE, len(jobs) - len(missed) + done, len(jobs))
            for job in jobs:
                self._take(ways[key_of(job.weight)], **files.read(_file(job), ())[0])

    def _take(self, ways: Sequence[Candidate], lost: Sequence[float], plain: float, harm: float) -> None:
        """What `_measure` gave; a weight of which nothing is known has no choice."""
        if lost:
            each = [dataclasses.replace(way, lost=value) for way, value in zip(ways, lost, strict=True)]
            self._candidates.append(each)
            self._sensitivities.append(max(harm, 0.0) / plain)

    @property
    def sizes(self) -> tuple[float, float]:
        """Bytes of the weights of the whole model with the fewest and with the most bits."""
        costs = self._bytes()
        return self._fixed + sum(map(min, costs)), self._fixed + sum(map(max, costs))

    @property
    def damage(self) -> float:
        """Where all weights are as the recipe says."""
        return math.fsum(each[0] for each in self._damages())

    def choose(self, budget: Budget) -> Choice:
        """The candidates of least damage within a budget.

        Raises:
            UsageError: The fewest bits cost more.
            OnnxpressError: ONNX Runtime refuses a product that is to be timed.
        """
        (costs, most), damages = self._costs(budget), self._damages()
        chosen = allocate(costs, damages, most)
        ways = [each[index] for each, index in zip(self._candidates, chosen, strict=True)]
        stored = sum(way.weight.stored for way in ways)
        return Choice(
            self._recipe.decided(overrides=(*self._recipe.overrides, *self._overrides(ways)), budget=None),
            math.fsum(each[index] for each, index in zip(damages, chosen, strict=True)),
            self._fixed + stored,
            8 * stored / self._elements,
            dict(Counter(_told_as(way) for way in ways)),
            all(each[index] == min(each) for each, index in zip(damages, chosen, strict=True)),
        )

    def choose_for(self, damage: float) -> Choice:
        """The fewest bytes with which no more damage is to be expected; all bits that there are where that is more."""
        low, high = self.sizes
        best = self.choose(Budget(high, "bytes"))
        while high - low > _CLOSE * high:
            middle = (low + high) / 2
            choice = self.choose(Budget(middle, "bytes"))
            low, high, best = (low, middle, choice) if choice.damage <= damage else (middle, high, best)
        return best

    @property
    def _fixed(self) -> int:
        """Bytes of weights that have no choice."""
        return self._whole - sum(ways[0].weight.stored for ways in self._candidates)

    @property
    def _elements(self) -> int:
        """Weights that have a choice."""
        return max(1, sum(ways[0].weight.weight.tensor.size for ways in self._candidates))

    def _costs(self, budget: Budget) -> tuple[list[list[float]], float]:
        """What candidates cost in the unit of a budget, bits as bytes, and what is there for them.

        Raises:
            UsageError: The fewest bits cost more.
        """
        costs, most = self._bytes(), budget.most
        if budget.unit == "bytes":
            most -= self._fixed
        elif budget.unit == "bits":
            most *= self._elements / 8
        else:
            costs = self._times()
        least = sum(map(min, costs))
        if most < least:
            told = self._told(least, budget.unit)
            raise UsageError(f"{option('budget')} cannot be met: with the fewest bits the weights take {told}")
        return costs, most

    def _told(self, cost: float, unit: str) -> str:
        """A cost as `_costs` has it, for a person."""
        if unit == "bits":
            return f"{8 * cost / self._elements:.2f} bits each"
        if unit == "bytes":
            return f"{size_text(round(cost + self._fixed))}, of which {size_text(self._fixed)} are not rounded"
        return f"{cost:.2f} ms"

    def _damages(self) -> list[list[float]]:
        pairs = zip(self._candidates, self._sensitivities, strict=True)
        return [[sensitivity * way.lost for way in ways] for ways, sensitivity in pairs]

    def _bytes(self) -> list[list[float]]:
        return [[way.weight.stored for way in ways] for ways in self._candidates]

    def _times(self) -> list[list[float]]:
        """Milliseconds; a Conv, which computes with float weights, takes as long whatever they are stored as."""
        known: dict[tuple[object, ...], float] = {}
        found = []
        for ways in self._candidates:
            times = []
            for way in ways:
                weight, recipe = way.weight.weight, self._as(way)
                key = weight.K, weight.N, way.scheme
                if key not in known:
                    known[key] = 0.0 if way.weight.convolution else product_time(weight.K, weight.N, recipe)
                times.append(known[key])
            found.append(times)
        return found

    def _as(self, way: Candidate) -> Recipe:
        """The recipe that makes all weights so."""
        return self._recipe.decided(**way.grid._asdict(), overrides=(), include=(), exclude=())

    def _overrides(self, ways: Sequence[Candidate]) -> list[Override]:
        own = self._recipe
        return [
            Override(match=name, **{**way.grid._asdict(), "rank": None if way.grid.rank == own.rank else way.grid.rank})
            for way in ways
            if way.grid != (own.scheme, own.block_size, own.symmetric, own.rank)
            for name in way.weight.nodes
        ]


def _call(
    job: Job, ways: Sequence[Candidate], form: str, products: Products, moments: Shared[Moments] | None,
    model: Shared[Sensitivity] | None,
) -> tuple[Any, ...]:  # fmt: skip
    """Arguments of `_measure`."""
    first = ways[0].weight
    factor = 1.0 if first.scheme.takes_factors else first.factor or 1.0
    layouts = {node.name or "": layout_of(node) for node in products.readers(job.weight)}
    schemes = [way.scheme for way in ways]
    factors = [factors_of(first, form, rank) for rank in sorted({scheme.rank for scheme in schemes} - {0})]
    rows = None if moments is None else rows_of(first)
    return moments, rows, schemes, factors, first.convolution, factor, layouts, model


def _measure(
    moments: Shared[Moments] | None, rows: Floats, schemes: Sequence[WeightScheme], factors: Sequence[Factors],
    convolution: bool, factor: float, layouts: Mapping[str, Layout], model: Shared[Sensitivity] | None,
) -> dict[str, Any]:  # fmt: skip
    """What products lose by each candidate of a weight.

    Of the codes of the first one alone also how much that is, and what it does to the model if it is asked.

    Args:
        moments: Of what the weight reads. Nothing is lost where that is nothing, or NaN or infinite: None.
        rows: The weight, [N, K].
        schemes: Of the candidates, with the rank of what is added to each.
        factors: Of these ranks.
        convolution: Whether it is of one.
        factor: By which nodes that read it multiply it.
        layouts: In which these nodes read it.
        model: That is asked.
    """
    if moments is None:
        return {"lost": [], "plain": 0.0, "harm": 0.0}
    first = Problem(rows, schemes[0], *moments.get(), convolution)
    codes = [dataclasses.replace(scheme, rank=0) for scheme in schemes]
    costs: dict[WeightScheme, dict[int, float]] = {}  # by rank
    harm = 1.0
    with one_thread_each():
        for scheme in dict.fromkeys(codes):
            found = _METHOD.round(dataclasses.replace(first, scheme=scheme))
            ranks = {each.rank for each, own in zip(schemes, codes, strict=True) if own == scheme}
            costs[scheme] = costs_by_rank(found, first, [each for each in factors if each.rank in ranks])
            if scheme == codes[0] and model is not None:
                numbers = found.rows()
                numbers /= np.float32(factor)
                harm = model.get().of({name: layout.of(numbers) for name, layout in layouts.items()})
    pairs = [(costs[own], each.rank) for each, own in zip(schemes, codes, strict=True)]
    lost = [max(min(by_rank[0], by_rank[rank]), _LEAST) for by_rank, rank in pairs]
    return {"lost": lost, "plain": max(costs[codes[0]][0], _LEAST), "harm": harm}


def _described(model: ir.Model, ways: Sequence[Sequence[Candidate]], data: Data) -> str:
    """What tells a measurement from others."""
    schemes = dict.fromkeys(str(way.scheme) for each in ways for way in each)
    return describe(model, [each[0].weight for each in ways], [_METHOD.name, *schemes], data)


def _told_as(way: Candidate) -> str:
    """A candidate for a person."""
    scheme = way.scheme
    return f"{scheme.name} and rank {scheme.rank}" if scheme.rank else scheme.name


def _file(job: Job) -> str:
    return f"weight{job.index}"
