"""Graphs rewritten so that nodes read rounded weights: which passes run in which order."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from ...graph.matching import opset_of
from ...passes.declare_functions import declare_functions
from ...passes.expand_sequence_map import ExpandSequenceMap
from ...passes.quantize_conv import QuantizeConv
from ...passes.quantize_gather import OPSET, QuantizeGather
from ...passes.quantize_matmul import Product, QuantizeMatMul
from ...passes.raise_opset import RaiseOpset
from ...passes.squeeze_weights import SqueezeWeights
from ...planning.kept_in_float import kept_in_float
from ...planning.lazy_weight import LazyWeight
from ...planning.plan import Decision, plan
from ...settings.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """A model whose weights are rounded when somebody reads them.

    Attributes:
        decisions: One for each node that could be taken.
        weights: The weights that are rounded.
        warnings: What the user should know.
        products: The products that read such weights.
    """

    decisions: list[Decision]
    weights: list[LazyWeight]
    warnings: list[str]
    products: list[Product]


def rewrite(model: ir.Model, decisions: list[Decision]) -> Rewritten:
    """Rewrite a model in place as was decided."""
    product, convolution, gather = QuantizeMatMul(decisions), QuantizeConv(decisions), QuantizeGather(decisions)
    for step in (product, convolution, gather, ExpandSequenceMap()):
        step(model)
    declare_functions(model)
    values = [decision.weight.value for decision in decisions if decision.taken and decision.weight is not None]
    weights = [*product.weights, *convolution.weights, *gather.weights]
    warnings = [*kept_in_float(model, values), *product.warnings]
    return Rewritten(decisions, weights, warnings, product.products)


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
