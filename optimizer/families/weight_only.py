"""Weights of 2 to 8 bits, activations as they are: which passes run in which order.

Data is asked for where somebody gives it. What products and convolutions read of it moves the codes of their weights,
when these are written.
"""

from __future__ import annotations

import dataclasses
import math

import onnx_ir as ir

from ..calibration import Data, Statistics, patches
from ..calibration.collect import survey
from ..graph.constants import constant_of, mark_constants
from ..graph.matching import opset_of
from ..graph.rewriting import required
from ..model_io.names import copy_of
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
from ..planning.stored_weights import Covariances, no_covariances
from ..quantization.rtn import decibels
from ..settings.recipe import Recipe
from .family import Family, Need, OpenData


def convert(
    model: ir.Model, recipe: Recipe, data: OpenData | None, progress: Progress, _source: str
) -> ConversionResult:
    """Convert a model, as `Convert` says; the inputs of weights are observed when these are written."""
    decisions = decide(model, recipe)
    opened = None if data is None else data()
    assert not isinstance(opened, Statistics), "the family's check refuses that"
    covariances = no_covariances if opened is None else _covariances(model, decisions, opened, progress)
    product, convolution = QuantizeMatMul(decisions, covariances), QuantizeConv(decisions, covariances)
    gather = QuantizeGather(decisions)
    for rewrite in (product, convolution, gather, ExpandSequenceMap()):
        rewrite(model)
    declare_functions(model)
    weights = [decision.weight.value for decision in decisions if decision.taken and decision.weight is not None]
    lazy = [*product.weights, *convolution.weights, *gather.weights]
    settled = {} if opened is None else {"method": "gptq"}
    return ConversionResult(
        decisions,
        weights=lambda: tuple(_weight_report(weight) for weight in lazy if weight.error is not None),
        gain=lambda: _gain(lazy),
        warnings=[*kept_in_float(model, weights), *product.warnings],
        rows=list(settled.items()),
        settled=settled,
    )


def _covariances(model: ir.Model, decisions: list[Decision], data: Data, progress: Progress) -> Covariances:
    """Of what nodes read in the float model, observed when they are asked for: in the order of the weights."""
    survey(data, progress)
    model = copy_of(model)
    mark_constants(model)
    taken = {each.node.name for each in decisions if _can_be_observed(each)}
    nodes = [node for node in model.graph if node.name in taken and constant_of(required(node.inputs[1])) is not None]
    nodes.sort(key=lambda node: node.op_type == "Conv")  # products are written first
    found = patches.Covariances(model, nodes, data, centred=False, progress=progress)
    return lambda decision: found.get(decision.node.name or "") if _can_be_observed(decision) else None


def _can_be_observed(decision: Decision) -> bool:
    """Not in a graph inside a node, and with a covariance that says something of each output."""
    return decision.taken and not decision.path and decision.op_type in ("MatMul", "Gemm", "Conv")


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
        weight.error.sqnr, weight.error.gain, weight.method, weight.stored,
    )  # fmt: skip


def _gain(weights: list[LazyWeight]) -> float:
    errors = [weight.error for weight in weights if weight.error is not None]
    return decibels(math.fsum(e.baseline for e in errors), math.fsum(e.cost for e in errors)) if errors else 0.0


def _need(recipe: Recipe, given: bool) -> Need:
    """A model of the catalogue has data without being asked, which is not read for weights alone then."""
    return Need.REQUIRED if recipe.method == "gptq" or (given and recipe.method is None) else Need.NONE


FAMILY = Family("weight-only", decide, convert, need=_need, takes_statistics=False)
