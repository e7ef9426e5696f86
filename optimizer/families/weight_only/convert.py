"""Weights of 2 to 8 bits, activations as they are: which passes run in which order.

Data is asked for where somebody gives it. What products and convolutions read of it moves the codes of their weights,
when these are written.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping

import onnx_ir as ir

from ...calibration import Statistics
from ...graph.matching import opset_of
from ...model_io.names import copy_of
from ...passes.declare_functions import declare_functions
from ...passes.expand_sequence_map import ExpandSequenceMap
from ...passes.quantize_conv import QuantizeConv
from ...passes.quantize_gather import OPSET, QuantizeGather
from ...passes.quantize_matmul import QuantizeMatMul
from ...passes.raise_opset import RaiseOpset
from ...passes.squeeze_weights import SqueezeWeights
from ...planning.kept_in_float import kept_in_float
from ...planning.lazy_weight import LazyWeight
from ...planning.plan import Decision, plan
from ...planning.report import WeightReport
from ...planning.result import ConversionResult, Progress
from ...quantization.quantized_weight import decibels
from ...settings.recipe import Recipe
from ..family import Family, Need, OpenData
from .with_data import Rounded, round_with_data

_BY_DEFAULT = "gptq"
"""Where there is data."""


def convert(
    model: ir.Model, recipe: Recipe, data: OpenData | None, progress: Progress, _source: str
) -> ConversionResult:
    """Convert a model, as `Convert` says; without data, weights are rounded when they are written."""
    decisions = decide(model, recipe)
    opened = None if data is None else data()
    assert not isinstance(opened, Statistics), "the family's check refuses that"
    original = None if opened is None else copy_of(model)
    product, convolution, gather = QuantizeMatMul(decisions), QuantizeConv(decisions), QuantizeGather(decisions)
    for rewrite in (product, convolution, gather, ExpandSequenceMap()):
        rewrite(model)
    declare_functions(model)
    weights = [decision.weight.value for decision in decisions if decision.taken and decision.weight is not None]
    lazy = [*product.weights, *convolution.weights, *gather.weights]
    rounded: dict[str, Rounded] = {}
    method = "rtn" if opened is None else recipe.method or _BY_DEFAULT
    if opened is not None and original is not None:
        rounded = round_with_data(original, lazy, opened, method, progress)
    return ConversionResult(
        decisions,
        weights=lambda: tuple(_weight_report(weight) for weight in lazy if weight.error is not None),
        gain=lambda: _gain(lazy),
        warnings=[*kept_in_float(model, weights), *product.warnings],
        details={"rounded": {name: dataclasses.asdict(each) for name, each in rounded.items()}} if rounded else {},
        rows=_rows(rounded),
        settled={} if opened is None else {"method": method},
    )


def _rows(rounded: Mapping[str, Rounded]) -> list[tuple[str, str]]:
    """What became of weights with data, for a person."""
    if not rounded:
        return []
    count = Counter(each.method for each in rounded.values())
    methods = ", ".join(f"{number} by {method}" for method, number in count.most_common())
    return [("rounded", f"{methods}, each the one that costs its product least on data that it has not seen")]


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
        weight.name, weight.nodes, weight.scheme.name, weight.weight.tensor.size,
        weight.error.sqnr, weight.error.gain,
    )  # fmt: skip


def _gain(weights: list[LazyWeight]) -> float:
    errors = [weight.error for weight in weights if weight.error is not None]
    return decibels(math.fsum(e.baseline for e in errors), math.fsum(e.cost for e in errors)) if errors else 0.0


def _need(recipe: Recipe, given: bool) -> Need:
    """A model of the catalogue has data without being asked, which is not read for weights alone then."""
    reads = given if recipe.method is None else recipe.method != "rtn"
    return Need.REQUIRED if reads else Need.NONE


FAMILY = Family("weight-only", decide, convert, need=_need, takes_statistics=False)
