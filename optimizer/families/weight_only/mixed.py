"""Widths of weights by what each costs the model: many bits where few would do harm.

Each weight has candidates, of more and fewer bits. What one does to the outputs of the model is taken to be

    damage = sensitivity of the weight * what its product loses by the candidate,

the first measured in the whole model (`sensitivity`), the second by the moments of its inputs, both on the float path,
with weights rounded to nearest under these moments. That damages of weights add up is what makes it cheap; it holds for
errors that are small (Malinovskii et al. 2024, "Pushing the Limits of Large Language Model Quantization via the
Linearity Theorem", eq. 4, with errors of weights in place of those of products). `allocate` then finds the candidates.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

import onnx_ir as ir

from ...calibration import Data
from ...calibration.collect import survey
from ...calibration.segments import Segments
from ...errors import UsageError, option
from ...graph.constants import mark_constants
from ...model_io.names import copy_of
from ...model_io.storage import weights_size
from ...planning.lazy_weight import LazyWeight
from ...planning.report import size_text
from ...planning.result import Progress
from ...quantization.allocation import allocate
from ...quantization.input_moments import InputMoments
from ...quantization.methods import METHODS
from ...quantization.schemes import SCHEMES
from ...settings.budget import Budget
from ...settings.override import Override
from ...settings.recipe import Recipe
from .product_time import product_time
from .products import Products, as_read, cost_of, numbers_of, problem_of
from .rewrite import decide, rewrite
from .sensitivity import Sensitivity

_STAGE = "mixed"
_WIDTHS = (
    ("int2", "int3", "int4", "int5", "int6", "int8"),
    ("fp4", "fp6", "fp8"),
    ("nf4", "fp6", "fp8"),
    ("mxfp4", "mxfp6", "mxfp8"),
    ("bfp4", "bfp6", "bfp8"),
)
_BLOCKS = (32, 128)
"""Of integers, where the recipe leaves it open."""
_METHOD = METHODS["search"]
_LEAST = 1e-30
_CLOSE = 1e-3


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to round a weight.

    Attributes:
        scheme: Its name.
        block_size: Where the recipe leaves that open.
        weight: The weight as it is then.
        lost: What its product loses of its squares, as `InputMoments.cost` has it.
    """

    scheme: str
    block_size: int | None
    weight: LazyWeight
    lost: float = math.inf


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

    Raises:
        UsageError: The budget cannot be met.
        OnnxpressError: ONNX Runtime cannot run the model.
    """

    def __init__(
        self, model: ir.Model, recipe: Recipe, data: Data, progress: Progress, budget: Budget | None = None
    ) -> None:
        self._recipe = recipe
        ways, self._whole = _ways(model, recipe)
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
            nodes = [node for job in jobs for node in products.readers(job.weight)]
            sensitivity = Sensitivity(copy, data, nodes) if holds_back else None
            for done, job in enumerate(jobs):
                progress(_STAGE, done, len(jobs))
                segments.advance(job.cut)
                moments = products.moments_of(job)
                if moments is not None:
                    self._measure(ways[_key(job.weight)], *moments, products.readers(job.weight), sensitivity)
            progress(_STAGE, len(jobs), len(jobs))

    def _measure(
        self, ways: Sequence[Candidate], moments: InputMoments, apart: InputMoments, readers: Sequence[ir.Node],
        sensitivity: Sensitivity | None,
    ) -> None:  # fmt: skip
        """All candidates of a weight, and what the first one does to the model where that is to be known."""
        measured, first = [], problem_of(ways[0].weight, moments, apart)
        for way in ways:
            problem = dataclasses.replace(first, scheme=way.weight.scheme)
            found = _METHOD.round(problem)
            lost = cost_of(apart, found, problem.rows)
            measured.append(dataclasses.replace(way, lost=max(lost, _LEAST)))
            if way is ways[0]:
                numbers = numbers_of(way.weight, found)
        harm = 1.0
        if sensitivity is not None:
            harm = sensitivity.of({node.name or "": as_read(node, numbers) for node in readers})
        self._candidates.append(measured)
        self._sensitivities.append(max(harm, 0.0) / measured[0].lost)

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
            dict(Counter(way.weight.scheme.name for way in ways)),
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
                key = weight.K, weight.N, way.weight.scheme
                if key not in known:
                    known[key] = 0.0 if way.weight.convolution else product_time(weight.K, weight.N, recipe)
                times.append(known[key])
            found.append(times)
        return found

    def _as(self, way: Candidate) -> Recipe:
        """The recipe that makes all weights so."""
        return self._recipe.decided(scheme=way.scheme, block_size=way.block_size, overrides=(), include=(), exclude=())

    def _overrides(self, ways: Sequence[Candidate]) -> list[Override]:
        own = self._recipe
        return [
            Override(match=name, scheme=way.scheme, block_size=way.block_size)
            for way in ways
            if (way.scheme, way.block_size) != (own.scheme, own.block_size)
            for name in way.weight.nodes
        ]


def _ways(model: ir.Model, recipe: Recipe) -> tuple[dict[tuple[object, ...], list[Candidate]], int]:
    """Candidates of each weight, that of the recipe first, and the bytes of all weights of the model as it is then."""
    found: dict[tuple[object, ...], list[Candidate]] = {}
    whole = 0
    for scheme, block_size in _settings(recipe):
        copy = copy_of(model)
        asked = recipe.decided(scheme=scheme, block_size=block_size)
        weights = rewrite(copy, decide(copy, asked)).weights
        if not found:
            whole = weights_size(copy)
            found = {_key(weight): [Candidate(scheme, block_size, weight)] for weight in weights}
            continue
        for weight in weights:
            ways = found.get(_key(weight))
            if ways is not None and all(way.weight.scheme != weight.scheme for way in ways):
                ways.append(Candidate(scheme, block_size, weight))
    return found, whole


def _settings(recipe: Recipe) -> list[tuple[str, int | None]]:
    """Schemes and block sizes that a weight may have, those of the recipe first."""
    own = recipe.scheme, recipe.block_size
    widths = next((each for each in _WIDTHS if recipe.scheme in each), (recipe.scheme, "fp6", "fp8"))
    found = [own]
    for scheme in widths:
        preset = SCHEMES[scheme]
        blocks = _BLOCKS if preset.integer and recipe.block_size is None and not preset.fixed else (recipe.block_size,)
        found += [(scheme, block) for block in blocks]
    return list(dict.fromkeys(found))


def _key(weight: LazyWeight) -> tuple[object, ...]:
    """What a weight is, however it is rounded."""
    return weight.name, weight.factor, weight.weight.transposed, weight.convolution, weight.nodes
