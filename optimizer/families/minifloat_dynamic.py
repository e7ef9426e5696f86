"""Dynamic minifloats: weights rounded once, activations as they come. The order of its passes."""

from __future__ import annotations

import onnx_ir as ir

from ..passes.declare_functions import declare_functions
from ..passes.expand_sequence_map import ExpandSequenceMap
from ..passes.float8_products import warn_of_float8_products
from ..passes.place_minifloat import OPSET, Floats, PlaceMinifloat
from ..passes.preparation import prepare
from ..planning.kept_in_float import kept_in_float
from ..planning.plan import Decision
from ..planning.plan_minifloat import plan_minifloat
from ..planning.report import weight_report
from ..planning.result import ConversionResult, Progress
from ..quantization.quantized_weight import QuantizedWeight
from ..quantization.round_weight import round_weight
from ..quantization.schemes import WeightScheme
from ..runtime.executor import PLAIN_MEANS, Means
from ..settings.recipe import Recipe
from .calibrated.builder import constant_operands
from .family import Family, OpenData


def convert(
    model: ir.Model, recipe: Recipe, _data: OpenData | None, progress: Progress, _source: str,
    _means: Means = PLAIN_MEANS,
) -> ConversionResult:  # fmt: skip
    """Convert a model, as `Convert` says."""
    progress("rewrite", 0, 1)
    left = prepare(model, recipe, opset=OPSET)
    plan = plan_minifloat(model, recipe)
    weights: dict[str, QuantizedWeight] = {}

    def rounded(name: str, weight: Floats, axis: int, scheme: WeightScheme) -> QuantizedWeight:
        weights[name] = round_weight(weight, axis, scheme, convolution=weight.ndim > 2)
        return weights[name]

    place = PlaceMinifloat(plan, rounded, None)
    constants = constant_operands(plan)
    place(model)
    ExpandSequenceMap()(model)
    declare_functions(model)
    progress("rewrite", 1, 1)
    reports = tuple(weight_report(name, place.readers(name), weight) for name, weight in weights.items())
    warnings = [*kept_in_float(model, constants), *warn_of_float8_products(model)]
    return ConversionResult(plan.decisions, lambda: reports, warnings=warnings, passes=left)


def decide(model: ir.Model, recipe: Recipe) -> list[Decision]:
    """What `convert` would decide of a cleaned-up float model, which is changed in place."""
    prepare(model, recipe, opset=OPSET)
    return plan_minifloat(model, recipe).decisions


FAMILY = Family("minifloat-dynamic", decide, convert)
