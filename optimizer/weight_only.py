"""Weights of 2 to 8 bits, activations as they are: which passes run in which order."""

from __future__ import annotations

import math

import onnx_ir as ir

from .outcome import Outcome
from .passes import Decision, QuantizeConv, QuantizeGather, QuantizeMatMul, RaiseOpset, SqueezeWeights, plan
from .passes.declare_functions import declare_functions
from .passes.kept_in_float import kept_in_float
from .passes.lazy_weight import LazyWeight
from .quantization.rtn import decibels
from .recipe import Recipe
from .report import WeightReport


def convert(model: ir.Model, recipe: Recipe) -> Outcome:
    """Convert a model, which CleanUp went over, in place. Weights are rounded when they are written."""
    decisions = decide(model, recipe)
    if RaiseOpset(_opset_needed(decisions))(model):
        decisions = plan(model, recipe)
    product, convolution, gather = QuantizeMatMul(), QuantizeConv(), QuantizeGather()
    for rewrite in (product, convolution, gather):
        rewrite(model, decisions)
    declare_functions(model)
    weights = [decision.weight.value for decision in decisions if decision.taken and decision.weight is not None]
    lazy = [*product.weights, *convolution.weights, *gather.weights]
    return Outcome(
        decisions,
        weights=lambda: tuple(_weight_report(weight) for weight in lazy if weight.error is not None),
        gain=lambda: _gain(lazy),
        warnings=[*kept_in_float(model, weights), *product.warnings],
    )


def decide(model: ir.Model, recipe: Recipe) -> list[Decision]:
    """What becomes of the nodes of a model, which CleanUp went over; it is prepared for that."""
    SqueezeWeights()(model)
    return plan(model, recipe)


def _opset_needed(decisions: list[Decision]) -> int:
    return max((decision.form.opset for decision in decisions if decision.form is not None), default=1)


def _weight_report(weight: LazyWeight) -> WeightReport:
    assert weight.error is not None
    return WeightReport(
        weight.name, tuple(weight.nodes), weight.scheme.name, weight.weight.tensor.size,
        weight.error.sqnr, weight.error.gain,
    )  # fmt: skip


def _gain(weights: list[LazyWeight]) -> float:
    errors = [weight.error for weight in weights if weight.error is not None]
    return decibels(math.fsum(e.baseline for e in errors), math.fsum(e.error for e in errors)) if errors else 0.0
