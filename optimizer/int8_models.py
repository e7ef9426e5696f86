"""INT8 models of one float model: its tensors' ranges and weights are rounded once for all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir

from .analysis.machine import products_saturate
from .calibration import Statistics, TensorStatistics, Wanted
from .calibration.collect import collect
from .calibration.patches import Covariances
from .calibration.ranges import activation_range, unusable
from .errors import OnnxpressError
from .outcome import Progress
from .passes.place_qdq import Floats, PlaceQdq, Range
from .passes.plan_int8 import Int8Plan, plan_int8
from .passes.restore_moments import restore_in_order
from .quantization.affine import AffineParameters, QuantizedTensor, quantize_weight
from .quantization.bias_correction import bias_shift
from .quantization.compensated import compensate
from .recipe import Recipe

_MEASURED = 16  # batches on which models are compared and moments restored


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """A float graph and what is known of its tensors.

    Attributes:
        model: After `prepare`, and after scales were moved between its channels.
        statistics: Of each tensor that may be rounded.
        data: The calibration data; empty where only statistics were given.
    """

    model: ir.Model
    statistics: Statistics
    data: Iterable[Any] = ()


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One INT8 model.

    Attributes:
        model: A model of its own; weights that stay in float are shared.
        plan: What became of each node.
        weights: The rounded weights by name.
        readers: The nodes that read each of them.
    """

    model: ir.Model
    plan: Int8Plan
    weights: Mapping[str, QuantizedTensor]
    readers: Mapping[str, tuple[str, ...]]


class Builder:
    """INT8 models of one float model."""

    def __init__(
        self,
        calibrated: Calibrated,
        recipe: Recipe,
        progress: Progress = lambda _stage, _done, _total: None,
    ) -> None:
        self.model, self.recipe, self._progress = calibrated.model.clone(), recipe, progress
        self.feeds = list(islice(calibrated.data, _MEASURED))
        self._statistics = calibrated.statistics
        self._unusable = {
            name: reason for name, tensor in self._statistics.items() if (reason := unusable(tensor)) is not None
        }
        self._covariances = _covariances(self.model, calibrated.data, recipe, progress) if self.feeds else None
        self._rounded: dict[tuple[str, bytes], QuantizedTensor] = {}
        self._ranges: dict[str, Range] = {}
        self._moments: Statistics | None = None
        self._reduce_range = products_saturate() if recipe.reduce_range is None else recipe.reduce_range
        self._weights: dict[str, QuantizedTensor] = {}
        self._last: tuple[frozenset[str], Candidate] | None = None

    def plan(self, model: ir.Model, kept: Mapping[str, str]) -> Int8Plan:
        """What becomes of the model with nodes of these names in float."""
        plan = plan_int8(model, self.recipe, self._unusable, kept)
        lacking = [value.name or "" for value in plan.tensors() if value.name not in self._statistics]
        if lacking:
            raise OnnxpressError(
                f"the calibration knows nothing of {', '.join(lacking[:3])}; calibrate this model, with the same recipe"
            )
        return plan

    def build(self, kept: Mapping[str, str]) -> Candidate:
        """The model with nodes of these names in float, without restored moments; the last one is kept at hand."""
        import onnx_ir.passes.common as common

        names = frozenset(kept)
        if self._last is not None and self._last[0] == names:
            return self._last[1]
        model = self.model.clone()
        plan = self.plan(model, kept)
        self._weights.clear()
        place = PlaceQdq(
            {value.name or "": self._range(value.name or "") for value in plan.tensors()},
            self._round,
            dtype=np.dtype(self.recipe.activation_type),
            symmetric=bool(self.recipe.symmetric),
            shift=self._shift,
        )
        place(model, plan)
        readers = {name: place.readers(name) for name in self._weights}
        common.RemoveUnusedNodesPass()(model)
        self._last = names, Candidate(model, plan, dict(self._weights), readers)
        return self._last[1]

    def unrestored(self, kept: Mapping[str, str]) -> tuple[ir.Model, list[str]]:
        """The same model and its products on codes."""
        candidate = self.build(kept)
        return candidate.model, products(candidate.plan)

    def restored(self, candidate: Candidate) -> Candidate:
        """A copy whose channels have their moments back."""
        model = candidate.model.clone()
        wanted = Wanted(histogram=False, channel_axis=1)
        names = [node.outputs[0].name or "" for node in self.model.graph if node.op_type in ("Conv", "Gemm")]
        if self._moments is None:
            self._moments = collect(self.model, self.feeds, dict.fromkeys(names, wanted))
        done = 0

        def measure(changed: ir.Model, depth: Sequence[str]) -> Statistics:
            nonlocal done
            self._progress("restore moments", done, len(names))
            done += len(depth)
            return collect(changed, self.feeds, dict.fromkeys(depth, wanted))

        restore_in_order(model, self._moments, measure)
        self._progress("restore moments", len(names), len(names))
        return dataclasses.replace(candidate, model=model)

    def observed(self) -> dict[str, TensorStatistics]:
        """Of the tensors that were rounded to codes in some model, but for inputs that data was given of."""
        given = {value.name for value in self.model.graph.inputs} if self.feeds else set()
        return {name: self._statistics[name] for name in self._ranges if name not in given}

    def _range(self, name: str) -> Range:
        if name not in self._ranges:
            self._ranges[name] = activation_range(
                self._statistics[name], self.recipe.range_method,
                percentile=self.recipe.percentile, symmetric=bool(self.recipe.symmetric),
            )  # fmt: skip
        return self._ranges[name]

    def _round(self, node: ir.Node, name: str, weight: Floats, axis: int, least: Floats | None) -> QuantizedTensor:
        """A weight's codes; the search for its scales is not repeated while its bias asks for the same."""
        channels = axis if self.recipe.per_channel else None
        if channels is None and least is not None:
            least = least.max(initial=0)
        key = name, b"" if least is None else least.tobytes()
        if key not in self._rounded:
            rounded = quantize_weight(
                weight, channels, reduce_range=self._reduce_range, search=self.recipe.search,
                least_scale=least,
            )  # fmt: skip
            covariance = self._covariances.get(node.name or "") if self._covariances is not None else None
            if covariance is not None:
                rounded = compensate(weight, axis, rounded, covariance, reduce_range=self._reduce_range)
            self._rounded[key] = rounded
        self._weights[name] = self._rounded[key]
        return self._rounded[key]

    def _shift(self, node: ir.Node, weight: Floats, rounded: QuantizedTensor) -> Floats | None:
        if not self.recipe.correct_bias:
            return None
        # By now the input is decoded from codes; these still bear the name of what was observed.
        mean = self._statistics[_observed(node)].channel_mean
        if mean is None:
            return None
        is_conv = node.op_type == "Conv"
        axis = 0 if is_conv else 1
        decoded = AffineParameters(rounded.scale, rounded.zero_point).dequantize(rounded.codes, axis)
        groups = node.attributes.get_int("group", 1)
        return -(bias_shift(weight, decoded, mean, groups) if is_conv else bias_shift(weight.T, decoded.T, mean))


def _covariances(model: ir.Model, data: Iterable[Any], recipe: Recipe, progress: Progress) -> Covariances | None:
    if recipe.compensate is False:
        return None
    operators = plan_int8(model, recipe).operators.values()
    nodes = [operator.node for operator in operators if operator.is_product and operator.constant is not None]
    return Covariances(model, nodes, data, centred=recipe.correct_bias, progress=progress)


def _observed(node: ir.Node) -> str:
    """The name under which the input of a placed product was observed."""
    decoder = node.inputs[0].producer()  # type: ignore[union-attr]
    assert decoder is not None
    return (decoder.name or "").removesuffix("_dequantize")


def products(plan: Int8Plan) -> list[str]:
    """Names of the products on codes."""
    return [operator.node.name or "" for operator in plan.operators.values() if operator.is_product]
