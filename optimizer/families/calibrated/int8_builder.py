"""INT8 models of one float model: QDQ with codes of 8 bits for the kernels of ONNX Runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from ...calibration.covariances import Covariances
from ...calibration.ranges import activation_range, unusable
from ...graph.rewriting import float_name, required
from ...passes.detach_clamps import DetachClamps
from ...passes.place_qdq import Floats, PlaceQdq, Range
from ...planning.plan_int8 import Int8Plan, plan_int8
from ...planning.result import Progress
from ...quantization.bias_correction import bias_shift
from ...quantization.methods import METHODS, Problem
from ...quantization.quantized_weight import QuantizedWeight
from ...quantization.round_weight import round_weight
from ...quantization.schemes import int8_weights
from ...runtime.machine import reduces_range
from ...settings.recipe import Recipe
from ..unlike_parts import unlike_parts
from .builder import Builder, Calibrated

Same = TypeVar("Same", bound="Int8Builder")


class Int8Builder(Builder[Int8Plan]):
    """INT8 models of one float model."""

    def __init__(self, calibrated: Calibrated, recipe: Recipe, progress: Progress) -> None:
        reasons = {name: why for name, tensor in calibrated.statistics.items() if (why := unusable(tensor)) is not None}
        super().__init__(calibrated, recipe, plan_int8, reasons, progress)
        self._ranges: dict[str, Range] = {}
        tensors = plan_int8(self.model, recipe, reasons).tensors()
        self._unusable = {**reasons, **unlike_parts(self.model, tensors, self._statistics, self._range)}
        self._data = calibrated.data
        self._covariances = self._covariances_for(recipe)
        self._rounded: dict[tuple[str, bytes], QuantizedWeight] = {}
        self._by_gptq: dict[tuple[str, bytes], QuantizedWeight] = {}
        self._reduce_range = reduces_range(recipe)

    def with_recipe(self: Same, recipe: Recipe) -> Same:
        """As the method that this overrides."""
        other = super().with_recipe(recipe)
        other._covariances, other._by_gptq = other._covariances_for(recipe), {}
        return other

    def _covariances_for(self, recipe: Recipe) -> Covariances | None:
        if recipe.method == "rtn" or not self.feeds:
            return None
        operators = plan_int8(self.model, recipe).operators.values()
        nodes = [operator.node for operator in operators if operator.is_product and operator.constant is not None]
        return Covariances(self.model, nodes, self._data, centred=recipe.correct_bias, progress=self._progress)

    def _rewrite(self, model: ir.Model, plan: Int8Plan) -> Callable[[str], tuple[str, ...]]:
        place = PlaceQdq(
            plan,
            {value.name or "": self._range(value.name or "") for value in plan.tensors()},
            self._round,
            dtype=np.dtype(self.recipe.activation_type),
            symmetric=bool(self.recipe.symmetric),
            shift=self._shift,
        )
        readers = plan.readers_in_float()
        place(model)
        DetachClamps(readers)(model)
        return place.readers

    def _range(self, name: str) -> Range:
        if name not in self._ranges:
            self._ranges[name] = activation_range(
                self._statistics[name], self.recipe.ranges,
                percentile=self.recipe.percentile, symmetric=bool(self.recipe.symmetric),
            )  # fmt: skip
        return self._ranges[name]

    def _round(self, node: ir.Node, name: str, weight: Floats, axis: int, least: Floats | None) -> QuantizedWeight:
        """A weight's codes; the search for its scales is not repeated while its bias asks for the same."""
        recipe = self.recipe
        if least is not None and not recipe.per_channel:
            least = least.max(initial=0)
        key = name, b"" if least is None else least.tobytes()
        if key not in self._rounded:
            scheme = int8_weights(search=recipe.search, reduce_range=self._reduce_range, per_channel=recipe.per_channel)
            self._rounded[key] = round_weight(weight, axis, scheme, least_scale=least)
        rounded = self._rounded[key]
        if self._covariances is not None:
            if key not in self._by_gptq:
                moments = self._covariances.get(node.name or "")
                if moments is not None:
                    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
                    problem = Problem(rows, rounded.scheme, moments, moments, start=rounded)
                    rounded = dataclasses.replace(METHODS["gptq"].round(problem), method="gptq")
                self._by_gptq[key] = rounded
            rounded = self._by_gptq[key]
        self._weights[name] = rounded
        return rounded

    def _shift(self, node: ir.Node, weight: Floats, rounded: QuantizedWeight) -> Floats | None:
        if not self.recipe.correct_bias:
            return None
        # By now the input is decoded from codes.
        mean = self._statistics[float_name(required(node.inputs[0]))].channel_mean
        if mean is None:
            return None
        is_conv = node.op_type == "Conv"
        decoded = rounded.values()
        groups = node.attributes.get_int("group", 1)
        return -(bias_shift(weight, decoded, mean, groups) if is_conv else bias_shift(weight.T, decoded.T, mean))
