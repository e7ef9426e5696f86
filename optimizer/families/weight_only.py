"""Weights of 2 to 8 bits, activations as they are: which passes run in which order."""

from __future__ import annotations

import dataclasses
import math

import onnx_ir as ir

from ..graph.matching import opset_of
from ..passes.declare_functions import declare_functions
from ..passes.expand_sequence_map import ExpandSequenceMap
from ..passes.quantize_conv import QuantizeConv
from ..passes.quantize_gather import OPSET, QuantizeGather
from ..passes.quantize_matmul import QuantizeMatMul
from ..passes.raise_opset import RaiseOpset
from ..passes.squeeze_weights import SqueezeWeights
from ..planning.kept_in_float import kept_in_float
from ..planning.lazy_weight import LazyWeight
from ..planning.plan import Decision, plan
from ..planning.report import WeightReport
from ..planning.result import ConversionResult, Progress
from ..quantization.rtn import decibels
from ..settings.recipe import Recipe
from .family import Family, OpenData


def convert(
    model: ir.Model, recipe: Recipe, _data: OpenData | None, _progress: Progress, _source: str
) -> ConversionResult:
    """Convert a model, as `Convert` says."""
    decisions = decide(model, recipe)
    product, convolution, gather = QuantizeMatMul(), QuantizeConv(), QuantizeGather()
    for rewrite in (product, convolution, gather):
        rewrite(model, decisions)
    ExpandSequenceMap()(model)
    declare_functions(model)
    weights = [decision.weight.value for decision in decisions if decision.taken and decision.weight is not None]
    lazy = [*product.weights, *convolution.weights, *gather.weights]
    return ConversionResult(
        decisions,
        weights=lambda: tuple(_weight_report(weight) for weight in lazy if weight.error is not None),
        gain=lambda: _gain(lazy),
        warnings=[*kept_in_float(model, weights), *product.warnings],
    )


def decide(model: ir.Model, recipe: Recipe) -> list[Decision]:
    """What becomes of the nodes of a model, which CleanUp went over; it is prepared for that.

    Its opset is raised for the forms that need it. Where it cannot be, these nodes are left, and the others are taken
    as they are.
    """
    SqueezeWeights()(model)
    decisions = plan(model, recipe)
    obstacle = ""
    for opset in sorted(set(map(_opset_needed, decisions)), reverse=True):
        step = RaiseOpset(opset)
        if (reason := step.obstacle(model)) is None:
            if step(model):
                decisions = plan(model, recipe)
            break
        obstacle = obstacle or reason
    reached = opset_of(model)
    return [
        dataclasses.replace(each, taken=False, reason=obstacle) if _opset_needed(each) > reached else each
        for each in decisions
    ]


def _opset_needed(decision: Decision) -> int:
    if decision.form is not None:
        return decision.form.opset
    return OPSET if decision.taken and decision.op_type == "Gather" else 1


def _weight_report(weight: LazyWeight) -> WeightReport:
    assert weight.error is not None
    return WeightReport(
        weight.name, tuple(weight.nodes), weight.scheme.name, weight.weight.tensor.size,
        weight.error.sqnr, weight.error.gain,
    )  # fmt: skip


def _gain(weights: list[LazyWeight]) -> float:
    errors = [weight.error for weight in weights if weight.error is not None]
    return decibels(math.fsum(e.baseline for e in errors), math.fsum(e.cost for e in errors)) if errors else 0.0


FAMILY = Family("weight-only", decide, convert)
