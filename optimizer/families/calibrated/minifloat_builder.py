"""Models of one float model that round activations and weights to floating-point numbers of few bits."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from ...calibration.ranges import activation_range, unusable
from ...passes.place_minifloat import Floats, PlaceMinifloat
from ...planning.plan_minifloat import MinifloatPlan, plan_minifloat
from ...planning.result import Progress
from ...quantization.quantized_weight import QuantizedWeight
from ...quantization.round_weight import round_weight
from ...quantization.schemes import WeightScheme
from ...settings.recipe import Recipe
from .builder import Builder, Calibrated


class MinifloatBuilder(Builder[MinifloatPlan]):
    """Models with scales from a calibration."""

    def __init__(self, calibrated: Calibrated, recipe: Recipe, progress: Progress) -> None:
        statistics = calibrated.statistics
        reasons = {name: why for name, tensor in statistics.items() if (why := unusable(tensor, math.inf)) is not None}
        super().__init__(calibrated, recipe, plan_minifloat, reasons, progress)
        self._rounded: dict[tuple[str, int, WeightScheme], QuantizedWeight] = {}

    def _rewrite(self, model: ir.Model, plan: MinifloatPlan) -> Callable[[str], tuple[str, ...]]:
        largest = {value.name or "": self._largest(value.name or "") for value in plan.tensors()}
        place = PlaceMinifloat(plan, self._round, largest)
        place(model)
        return place.readers

    def _largest(self, name: str) -> float:
        recipe = self.recipe
        return activation_range(
            self._statistics[name], recipe.ranges, percentile=recipe.percentile, symmetric=True
        )[1]  # fmt: skip

    def _round(self, name: str, weight: Floats, axis: int, scheme: WeightScheme) -> QuantizedWeight:
        key = name, axis, scheme
        if key not in self._rounded:
            self._rounded[key] = round_weight(weight, axis, scheme, convolution=weight.ndim > 2)
        self._weights[name] = self._rounded[key]
        return self._rounded[key]
