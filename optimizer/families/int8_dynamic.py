"""Dynamic INT8: weights rounded once, activations as they come. The order of its passes."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from ..passes.base import Left, run_all
from ..passes.declare_functions import declare_functions
from ..passes.fuse_attention import FuseAttention
from ..passes.quantize_dynamic import OPSET, QuantizeDynamic
from ..passes.quantize_encoder_layers import QuantizeEncoderLayers
from ..passes.raise_opset import RaiseOpset
from ..passes.recognise_activations import RecogniseActivations
from ..passes.recognise_norms import OPSET as NORMS
from ..passes.recognise_norms import RecogniseNorms
from ..passes.separate_layer_norm import SeparateLayerNorm
from ..passes.squeeze_weights import SqueezeWeights
from ..planning.kept_in_float import kept_in_float
from ..planning.lazy_weight import gain, reports
from ..planning.plan import Decision
from ..planning.plan_dynamic import plan_attention, plan_dynamic
from ..planning.report import group_reasons
from ..planning.result import ConversionResult, Progress
from ..planning.stored_weights import StoredWeights
from ..runtime.machine import made_for, reduces_range, warn_of_saturation
from ..settings.recipe import Recipe
from .decoder_fusion import finish_decoder
from .family import Family, OpenData

_PADDING = "is not computed: outputs of tokens that the mask leaves out are 0"
_SOME = "is passed over within whole layers alone: elsewhere what a token gives depends on its batch"
_EXACT = "any CPU: sums of whole layers are exact"


def convert(
    model: ir.Model, recipe: Recipe, _data: OpenData | None, progress: Progress, _source: str
) -> ConversionResult:
    """Convert a model, as `Convert` says.

    An attention is fused where the recipe takes all three of its projections, and a layer where it takes all of its
    products; their decisions stand for it.
    """
    progress("rewrite", 0, 1)
    plan = _plan(model, recipe)
    reduced = reduces_range(recipe)
    stored = StoredWeights()
    layers = QuantizeEncoderLayers(plan.products, plan.fused, stored, recipe.search)
    if recipe.fuse_layers:
        layers(model)
    quantize = QuantizeDynamic([*plan.products, *plan.attentions], reduced, recipe.search, stored)
    others = quantize(model)  # than those of whole layers
    if others or layers.made:
        SeparateLayerNorm()(model)
        declare_functions(model)
    fusion = finish_decoder(model, recipe)
    progress("rewrite", 1, 1)
    fused = {"attention": (len(plan.fused), plan.fuse.left)}
    rows = [("made for", _EXACT if layers.made and not others else made_for(reduced))]
    if recipe.fuse_layers:
        fused["layers"] = (len(layers.made), layers.left or _no_attention(plan))
    if layers.made:
        whole = len(layers.made) == len(plan.fused) + len(plan.fuse.left)
        rows.append(("padding", _PADDING if whole else _SOME))
    return ConversionResult(
        decisions=plan.told,
        weights=lambda: reports(stored.weights),
        gain=lambda: gain(stored.weights),
        warnings=[
            *(warn_of_saturation(reduced) if others else []),
            *kept_in_float(model, [weight.weight.value for weight in stored.weights]),
            *fusion.warnings,
        ],
        details={
            **{what: {"fused": made, "left": _grouped(what, left)} for what, (made, left) in fused.items()},
            **fusion.details,
            "made_for": rows[0][1],
        },
        rows=[
            *rows,
            *(row for what, (made, left) in fused.items() for row in _rows(what, made, left)),
            *fusion.rows,
        ],
        passes=plan.left | ({type(layers).__name__: layers.left} if layers.left else {}) | fusion.passes,
    )


def decide(model: ir.Model, recipe: Recipe) -> list[Decision]:
    """What `convert` would decide of a cleaned-up float model, which is changed in place."""
    return _plan(model, recipe).told


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What becomes of a prepared model.

    Attributes:
        products: Decisions on products, but those within fused attentions.
        attentions: Decisions on attentions, which are fused by then.
        fuse: The pass that did it.
        left: What passes left.
    """

    products: list[Decision]
    attentions: list[Decision]
    fuse: FuseAttention
    left: Left

    @property
    def fused(self) -> list[Decision]:
        """On attentions that were not there before."""
        return [decision for decision in self.attentions if decision.node in self.fuse.fused]

    @property
    def told(self) -> list[Decision]:
        """On what the model had before."""
        return [*self.products, *(each for each in self.attentions if each.node not in self.fuse.fused)]


def _plan(model: ir.Model, recipe: Recipe) -> _Plan:
    versions = (NORMS, OPSET) if recipe.fuse_layers else (OPSET,)
    rise = next((rise for rise in map(RaiseOpset, versions) if rise.obstacle(model) is None), None)
    is_new = rise is not None
    parts = (RecogniseActivations(), RecogniseNorms()) if recipe.fuse_layers else ()
    left = run_all(model, (*([rise] if rise is not None else []), SqueezeWeights(), *parts))
    products = plan_dynamic(model, recipe)
    reasons = {decision.node: decision.reason for decision in products if not decision.taken}
    fuse = FuseAttention(reasons.get)
    if recipe.fuse and is_new and any(decision.taken for decision in products):
        left |= run_all(model, (fuse,))
    attentions = plan_attention(model, recipe, fuse.fused)
    # The products within a fused attention are no longer there to be told of.
    return _Plan([each for each in products if each.taken or each.node.graph is not None], attentions, fuse, left)


def _no_attention(plan: _Plan) -> dict[str, str]:
    """Why there is no layer, where nothing says it otherwise."""
    return {} if plan.fused or plan.fuse.left else {"": "the model has no self-attention to find them by"}


def _grouped(what: str, left: dict[str, str]) -> dict[str, int]:
    return group_reasons([(what, reason) for reason in left.values()])


def _rows(what: str, made: int, left: dict[str, str]) -> list[tuple[str, str]]:
    return [(what, f"{made} fused"), *(("", f"{n} left: {reason}") for reason, n in _grouped(what, left).items())]


FAMILY = Family("dynamic", decide, convert)
