"""Products of low rank beside rounded weights: which weights get one, fitted by data or without, and what they win."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir

from ...graph.constants import release
from ...graph.rewriting import required
from ...graph.weight_form import factor_form
from ...passes.add_low_rank import Added, AddLowRank
from ...passes.declare_functions import declare_functions
from ...planning.lazy_weight import LazyWeight
from ...planning.report import size_text
from ...quantization.low_rank import CompensatedWeight, LowRank, fit_low_rank, round_low_rank
from ...quantization.methods import Problem
from ...quantization.quantized_weight import Floats, QuantizedWeight
from ...quantization.round_weight import round_weight
from ...quantization.schemes import WeightScheme
from .products import cost_of, rows_of
from .results import Compensated, Result, Results, Rounded, Store
from .rewrite import Rewritten

_ROWS = 1 << 13
_NO_GAIN = "a product of low rank does not make its error smaller on data that it has not seen"


@dataclasses.dataclass(frozen=True)
class Compensation:
    """What was added to a model.

    Attributes:
        done: What it gives back, by name of the weight.
        sizes: Bytes of it.
        left: Why nodes have none, by their names.
    """

    done: dict[str, Compensated] = dataclasses.field(default_factory=dict)
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    left: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def passes(self) -> dict[str, dict[str, str]]:
        """For a report."""
        return {AddLowRank.__name__: self.left} if self.left else {}

    @property
    def details(self) -> dict[str, object]:
        """For a report."""
        told = {name: {**dataclasses.asdict(each), "bytes": self.sizes[name]} for name, each in self.done.items()}
        return {"compensated": told} if told else {}

    @property
    def rows(self) -> list[tuple[str, str]]:
        """For a person."""
        rows = []
        for by_data in (True, False):
            some = {name: each for name, each in self.done.items() if each.by_data == by_data}
            if not some:
                continue
            counts = Counter(each.rank for each in some.values())
            ranks = ", ".join(f"{count} by rank {rank}" for rank, count in counts.items())
            before, after = (_share(some.values(), key) for key in ("before", "after"))
            what = "of their products' squares lost on data kept apart" if by_data else "of their squares lost"
            size = size_text(sum(self.sizes[name] for name in some))
            rows.append(("compensated", f"{ranks}, {size}: {100 * after:.3g} % {what}, {100 * before:.3g} % before"))
        return rows

    @property
    def warnings(self) -> list[str]:
        """What the user should know."""
        reasons = list(self.left.values())
        return [] if self.done or not reasons else [f"no product of low rank was added: {reasons[0]}"]


def why_none(weight: LazyWeight) -> str:
    """Why no product of low rank is tried beside a weight, however much it would win; "" where one is."""
    if weight.readers[0].op_type not in ("MatMul", "Gemm"):
        return f"products of low rank are added to MatMul and Gemm alone, not to {weight.readers[0].op_type}"
    K, N, rank = weight.weight.K, weight.weight.N, weight.scheme.rank
    if rank * (K + N) >= K * N:
        return f"a product of rank {rank} has as many numbers as the weight, [{K}, {N}]"
    return ""


def rank_of(weight: LazyWeight) -> int:
    """Of the product of low rank that is tried beside a weight; 0 where none is."""
    return weight.scheme.rank if weight.scheme.rank and not why_none(weight) else 0


def compensate_by_data(
    factors: Factors, found: QuantizedWeight, problem: Problem, target: Floats, before: float
) -> tuple[Compensated, LowRank | None]:
    """What a product of low rank gives back on rows kept apart, and the product if that is anything.

    Args:
        factors: Of the product.
        found: The weight, rounded.
        problem: With its inputs.
        target: What the method aimed at, [N, K].
        before: What the rounded weight costs.
    """
    low_rank = factors.fitted(target - found.rows(), problem)
    after = cost_of(problem.apart, CompensatedWeight(found, low_rank), problem.rows)
    told = Compensated(low_rank.rank, before, after, problem.apart.energy(problem.rows), by_data=True)
    return told, low_rank if told.helps else None


def compensate(model: ir.Model, rewritten: Rewritten, results: Results, form: str) -> Compensation:
    """Add products of low rank where the settings of nodes want them.

    Args:
        model: That was rewritten.
        rewritten: What it has by now.
        results: Weights that were rounded by data, with what was fitted by it.
        form: Of weights, as in the recipe.

    Raises:
        OnnxpressError: What was found cannot be kept in a file.
    """
    wanted = [weight for weight in rewritten.weights if weight.scheme.rank]
    if not wanted:
        return Compensation()
    whole, added, store = Compensation(), {}, Store(None, "")
    for index, weight in enumerate(wanted):
        result, reason = results.get(weight.identity), why_none(weight)
        if not reason and result is None:
            result = _without_data(weight, store, f"weight{index}", form)
            weight.take(result.read, weight.method)
        if result is not None and result.read_low_rank is not None:
            added[weight.identity] = Added(weight.scheme.rank, result.read_low_rank)
            whole.done[weight.name] = required(result.compensated)
        else:
            whole.left.update(dict.fromkeys(weight.nodes, reason or _NO_GAIN))
    return dataclasses.replace(whole, sizes=_add(model, rewritten, added, form))


def add_unread(model: ir.Model, rewritten: Rewritten, form: str) -> None:
    """Add products of low rank wherever the settings of nodes want them, whose numbers nobody may read."""
    wanted = {weight.identity: Added(rank, _unread) for weight in rewritten.weights if (rank := rank_of(weight))}
    if wanted:
        _add(model, rewritten, wanted, form)


def _unread() -> LowRank:
    raise AssertionError("the numbers of a product of low rank were read before there are any")


def _add(
    model: ir.Model, rewritten: Rewritten, added: dict[tuple[object, ...], Added], form: str
) -> dict[str, int]:  # fmt: skip
    """Add products of low rank, also to the bytes of their weights; their bytes by name of the weight."""
    step, sizes = AddLowRank(rewritten.products, added, form), {}
    step(model)
    declare_functions(model)
    for weight in rewritten.weights:
        if weight.identity in step.sizes:
            sizes[weight.name] = step.sizes[weight.identity]
            weight.stored += step.sizes[weight.identity]
    return sizes


def costs_by_rank(found: QuantizedWeight, problem: Problem, each: Sequence[Factors]) -> dict[int, float]:
    """What a weight costs on rows kept apart with products of some ranks, each at least 1, beside it; at 0 without.

    The best product of a rank is the leading part of that of any higher one.
    """
    costs = {0: cost_of(problem.apart, found, problem.rows)}
    if not each:
        return costs
    most = max(factors.rank for factors in each)
    inner, outer = fit_low_rank(problem.rows - found.rows(), most, problem.moments.second[0])
    for factors in each:
        leading = np.ascontiguousarray(inner[:, : factors.rank]), outer[: factors.rank]
        low_rank = round_low_rank(*leading, factors.schemes)
        costs[factors.rank] = cost_of(problem.apart, CompensatedWeight(found, low_rank), problem.rows)
    return costs


def _without_data(weight: LazyWeight, store: Store, name: str, form: str) -> Result:
    """A weight rounded to the nearest, with the leading part of its error beside it."""
    rows = rows_of(weight)
    found = round_weight(weight.rows(), 0 if weight.weight.transposed else 1, weight.scheme)
    release(weight.weight.tensor)
    low_rank = factors_of(weight, form).fitted(rows - found.rows())
    after = squared_error(CompensatedWeight(found, low_rank), rows)
    told = Compensated(low_rank.rank, found.error.error, after, found.error.energy, by_data=False)
    rounded = Rounded("rtn", found.error.error, found.error.error, found.error.energy)
    if told.helps:
        found = dataclasses.replace(found, error=dataclasses.replace(found.error, error=after))
    return store.keep(name, found, rounded, told, low_rank if told.helps else None)


@dataclasses.dataclass(frozen=True)
class Factors:
    """How a product of low rank is made.

    Attributes:
        rank: Of it.
        schemes: Of its factors.
    """

    rank: int
    schemes: tuple[WeightScheme, WeightScheme]

    def fitted(self, error: Floats, problem: Problem | None = None) -> LowRank:
        """That of least error beside a weight of an error [N, K], by its inputs where they are known."""
        factors = fit_low_rank(error, self.rank, None if problem is None else problem.moments.second[0])
        return round_low_rank(*factors, self.schemes)


def factors_of(weight: LazyWeight, form: str, rank: int = 0) -> Factors:
    """Those of a rank, by default its own, beside a weight of which `why_none` has nothing to say.

    Args:
        weight: The weight.
        form: Of weights, as in the recipe.
        rank: Of the product; 0 for that which the settings of the weight want.
    """
    rank, dtype = rank or weight.scheme.rank, weight.weight.dtype
    if required(weight.readers[0].form).widened:
        dtype = ir.DataType.FLOAT
    inner, outer = (factor_form(form, length, dtype).scheme for length in (weight.weight.K, rank))
    return Factors(rank, (inner, outer))


def squared_error(found: CompensatedWeight, rows: Floats) -> float:
    """Of a weight [N, K], a part at a time."""
    parts = (slice(begin, begin + _ROWS) for begin in range(0, len(rows), _ROWS))
    return sum(float(np.square(found.part(part).rows() - rows[part], dtype=np.float64).sum()) for part in parts)


def _share(some: Collection[Compensated], key: str) -> float:
    energy = sum(each.energy for each in some)
    return sum(getattr(each, key) for each in some) / energy if energy else 0.0
