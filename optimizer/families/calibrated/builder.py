"""Calibrated models of one float model: its tensors' ranges and weights are rounded once for all of them."""

from __future__ import annotations

import abc
import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import onnx_ir as ir

from ...calibration import Statistics, TensorStatistics
from ...errors import OnnxpressError
from ...graph.rewriting import required
from ...model_io.names import copy_of
from ...passes.remove_unused import remove_unused
from ...planning.int8_operators import Operator
from ...planning.kept_in_float import kept_in_float
from ...planning.plan import Decision
from ...planning.result import Progress
from ...quantization.quantized_weight import QuantizedWeight
from ...settings.recipe import Recipe
from .restoring import restore_moments

_MEASURED = 16  # batches on which models are compared and moments restored


class Plan(Protocol):
    """What becomes of a graph."""

    @property
    def operators(self) -> Mapping[ir.Node, Operator]:
        """The nodes that read rounded tensors, in the order of the graph."""

    @property
    def decisions(self) -> list[Decision]:
        """One for each node with a weight and for each other node that could have been taken."""

    def tensors(self) -> list[ir.Value]:
        """All activations that are rounded, each once."""


P = TypeVar("P", bound=Plan)
B = TypeVar("B", bound="Builder[Any]")
Planner = Callable[[ir.Model, Recipe, "Mapping[str, str] | None", "Mapping[str, str] | None"], P]
"""(model, recipe, tensors that cannot be rounded and why, nodes that stay in float and why) -> plan."""


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """A float graph and what is known of its tensors.

    Attributes:
        model: After `prepare`, and after scales were moved between its channels.
        statistics: Of each tensor that may be rounded.
        data: The calibration data; empty where only statistics were given.
        step: The setting that moved scales last; empty where none did.
    """

    model: ir.Model
    statistics: Statistics
    data: Iterable[Any] = ()
    step: str = ""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One rounded model.

    Attributes:
        model: A model of its own; weights that stay in float are shared.
        decisions: What became of each node.
        products: Names of the products that read rounded tensors.
        weights: The rounded weights by name.
        readers: The nodes that read each of them.
        warnings: What the user should know.
        left: What was left when its moments were restored, and why, by the node's name.
    """

    model: ir.Model
    decisions: list[Decision]
    products: list[str]
    weights: Mapping[str, QuantizedWeight]
    readers: Mapping[str, tuple[str, ...]]
    warnings: Sequence[str] = ()
    left: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Builder(abc.ABC, Generic[P]):
    """Rounded models of one float model.

    Args:
        calibrated: The float model.
        recipe: What is asked for.
        plan: Decides on nodes.
        unusable: Tensors that cannot be rounded, by name, and why.
        progress: Told how the work goes on.

    Attributes:
        model: The float model.
        recipe: What is asked for.
        feeds: Some of the data.
    """

    def __init__(
        self, calibrated: Calibrated, recipe: Recipe, plan: Planner[P], unusable: Mapping[str, str], progress: Progress
    ) -> None:
        self.model, self.recipe = copy_of(calibrated.model), recipe
        self.feeds = list(islice(calibrated.data, _MEASURED))
        self._statistics, self._planner, self._unusable = calibrated.statistics, plan, unusable
        self._progress = progress
        self._seen: dict[str, None] = {}
        self._weights: dict[str, QuantizedWeight] = {}
        self._last: tuple[Mapping[str, str], Candidate] | None = None

    def with_recipe(self: B, recipe: Recipe) -> B:
        """The same float model, rounded as another recipe asks for; what both find of it is found once."""
        other = copy.copy(self)
        other.recipe, other._seen, other._weights, other._last = recipe, {}, {}, None
        return other

    @abc.abstractmethod
    def _rewrite(self, model: ir.Model, plan: P) -> Callable[[str], tuple[str, ...]]:
        """Carry out a plan; put weights into `_weights`, and give who reads one, by its name."""

    def plan(self, model: ir.Model, kept: Mapping[str, str]) -> P:
        """What becomes of the model with nodes of these names in float."""
        plan = self._planner(model, self.recipe, self._unusable, kept)
        lacking = [value.name or "" for value in plan.tensors() if value.name not in self._statistics]
        if lacking:
            raise OnnxpressError(
                f"the calibration knows nothing of {', '.join(lacking[:3])}; calibrate this model, with the same recipe"
            )
        return plan

    def build(self, kept: Mapping[str, str]) -> Candidate:
        """The model with nodes of these names in float, without restored moments; the last one is kept at hand."""
        if self._last is not None and self._last[0] == kept:
            return self._last[1]
        model = copy_of(self.model)
        plan = self.plan(model, kept)
        self._seen.update(dict.fromkeys(value.name or "" for value in plan.tensors()))
        self._weights.clear()
        constants = constant_operands(plan)
        found = self._rewrite(model, plan)
        readers = {name: found(name) for name in self._weights}
        remove_unused(model)
        warnings = kept_in_float(model, constants)
        candidate = Candidate(model, plan.decisions, products(plan), dict(self._weights), readers, warnings)
        self._last = dict(kept), candidate
        return candidate

    def unrestored(self, kept: Mapping[str, str]) -> tuple[ir.Model, list[str]]:
        """The same model and its rounded products."""
        candidate = self.build(kept)
        return candidate.model, candidate.products

    def restored(self, candidate: Candidate) -> Candidate:
        """A copy whose channels have their moments back."""
        model = copy_of(candidate.model)
        left = restore_moments(self.model, model, self.feeds, self._progress)
        return dataclasses.replace(candidate, model=model, left=left)

    def observed(self) -> dict[str, TensorStatistics]:
        """Of the tensors that were rounded in some model, but for inputs that data was given of."""
        given = {value.name for value in self.model.graph.inputs} if self.feeds else set()
        return {name: self._statistics[name] for name in self._seen if name not in given}


def products(plan: Plan) -> list[str]:
    """Names of the products that read rounded tensors."""
    return [operator.node.name or "" for operator in plan.operators.values() if operator.is_product]


def constant_operands(plan: Plan) -> list[ir.Value]:
    """The constants that are rounded."""
    operators = [operator for operator in plan.operators.values() if operator.constant is not None]
    return [required(operator.node.inputs[required(operator.constant)]) for operator in operators]
