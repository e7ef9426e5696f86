"""Dynamic minifloats: weights rounded once, activations as they come. The order of its passes."""

from __future__ import annotations

import onnx_ir as ir

from .outcome import Outcome, Progress
from .passes import Decision
from .passes.declare_functions import declare_functions
from .passes.expand_sequence_map import ExpandSequenceMap
from .passes.float8_products import warn_of_float8_products
from .passes.kept_in_float import kept_in_float
from .passes.place_minifloat import OPSET, Floats, PlaceMinifloat
from .passes.plan_minifloat import plan_minifloat
from .preparation import prepare
from .quantization.float_weight import FloatWeight, round_weight
from .quantization.schemes import WeightScheme
from .recipe import Recipe
from .report import weight_report
from .static_models import constant_operands


def convert(model: ir.Model, recipe: Recipe, progress: Progress = lambda _stage, _done, _total: None) -> Outcome:
    """Convert a float model, which CleanUp went over, in place.

    Args:
        model: The model.
        recipe: Of kind "minifloat-dynamic".
        progress: Told the stage, what is done of it, and the whole.
    """
    progress("rewrite", 0, 1)
    prepare(model, recipe, opset=OPSET)
    plan = plan_minifloat(model, recipe)
    weights: dict[str, FloatWeight] = {}

    def rounded(name: str, weight: Floats, axis: int, scheme: WeightScheme) -> FloatWeight:
        weights[name] = round_weight(weight, axis, scheme)
        return weights[name]

    place = PlaceMinifloat(rounded, None)
    constants = constant_operands(plan)
    place(model, plan)
    ExpandSequenceMap()(model)
    declare_functions(model)
    progress("rewrite", 1, 1)
    reports = tuple(weight_report(name, place.readers(name), weight) for name, weight in weights.items())
    warnings = [*kept_in_float(model, constants), *warn_of_float8_products(model)]
    return Outcome(plan.decisions, lambda: reports, warnings=warnings)


def decide(model: ir.Model, recipe: Recipe) -> list[Decision]:
    """What `convert` would decide of a cleaned-up float model, which is changed in place."""
    prepare(model, recipe, opset=OPSET)
    return plan_minifloat(model, recipe).decisions
