"""Dynamic INT8: weights rounded once, activations as they come. The order of its passes."""

from __future__ import annotations

import onnx_ir as ir

from ..passes.fuse_attention import FuseAttention
from ..passes.quantize_dynamic import OPSET, QuantizeDynamic
from ..passes.raise_opset import RaiseOpset
from ..passes.remove_unused import remove_unused
from ..passes.separate_layer_norm import SeparateLayerNorm
from ..passes.squeeze_weights import SqueezeWeights
from ..planning.kept_in_float import kept_in_float
from ..planning.lazy_weight import gain, reports
from ..planning.plan import Decision
from ..planning.plan_dynamic import plan_attention, plan_dynamic
from ..planning.report import group_reasons
from ..planning.result import ConversionResult, Progress
from ..runtime.machine import made_for, reduces_range, warn_of_saturation
from ..settings.recipe import Recipe
from .family import Family, OpenData


def convert(
    model: ir.Model, recipe: Recipe, _data: OpenData | None, progress: Progress, _source: str
) -> ConversionResult:
    """Convert a model, as `Convert` says.

    An attention is fused where the recipe takes all three of its projections; their decisions stand for it.
    """
    progress("rewrite", 0, 1)
    decisions, attention, fuse = _plan(model, recipe)
    reduced = reduces_range(recipe)
    quantize = QuantizeDynamic([*decisions, *attention], reduced, recipe.search)
    if quantize(model):
        SeparateLayerNorm()(model)
        remove_unused(model)
    progress("rewrite", 1, 1)
    left = group_reasons([("attention", reason) for reason in fuse.left.values()])
    return ConversionResult(
        decisions=[*decisions, *(decision for decision in attention if decision.node not in fuse.fused)],
        weights=lambda: reports(quantize.weights),
        gain=lambda: gain(quantize.weights),
        warnings=[
            *warn_of_saturation(reduced),
            *kept_in_float(model, [weight.weight.value for weight in quantize.weights]),
        ],
        details={"attention": {"fused": len(fuse.fused), "left": left}, "made_for": made_for(reduced)},
        rows=[
            ("made for", made_for(reduced)),
            ("attention", f"{len(fuse.fused)} fused"),
            *(("", f"{n} left: {what}") for what, n in left.items()),
        ],
        passes={FuseAttention.__name__: fuse.left} if fuse.left else {},
    )


def decide(model: ir.Model, recipe: Recipe) -> list[Decision]:
    """What `convert` would decide of a cleaned-up float model, which is changed in place."""
    decisions, attention, fuse = _plan(model, recipe)
    return [*decisions, *(decision for decision in attention if decision.node not in fuse.fused)]


def _plan(model: ir.Model, recipe: Recipe) -> tuple[list[Decision], list[Decision], FuseAttention]:
    """Decisions on products and on attentions, which are fused by then."""
    rise = RaiseOpset(OPSET)
    is_new = rise.obstacle(model) is None
    if is_new:
        rise(model)
    SqueezeWeights()(model)
    decisions = plan_dynamic(model, recipe)
    reasons = {decision.node: decision.reason for decision in decisions if not decision.taken}
    fuse = FuseAttention(reasons.get)
    if recipe.fuse and is_new and any(decision.taken for decision in decisions):
        fuse(model)
    attention = plan_attention(model, recipe, fuse.fused)
    # The two products within a fused attention are no longer there to be told of.
    return [each for each in decisions if each.taken or each.node.graph is not None], attention, fuse


FAMILY = Family("dynamic", decide, convert)
