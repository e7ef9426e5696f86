"""Dynamic INT8: weights rounded once, activations as they come. The order of its passes."""

from __future__ import annotations

import dataclasses
from typing import Any

import onnx_ir as ir

from ..passes.base import Left, run_all
from ..passes.declare_functions import declare_functions
from ..passes.fold_affine import FoldAffine
from ..passes.fuse_attention import FuseAttention
from ..passes.fuse_cached_attention import FuseCachedAttention
from ..passes.quantize_dynamic import OPSET, QuantizeDynamic
from ..passes.quantize_encoder_layers import QuantizeEncoderLayers
from ..passes.raise_opset import RaiseOpset
from ..passes.recognise_activations import RecogniseActivations
from ..passes.recognise_norms import OPSET as NORMS
from ..passes.recognise_norms import RecogniseNorms
from ..passes.recognise_rms_norms import RecogniseRmsNorms
from ..passes.separate_layer_norm import SeparateLayerNorm
from ..passes.squeeze_weights import SqueezeWeights
from ..planning.kept_in_float import kept_in_float
from ..planning.lazy_weight import gain, reports
from ..planning.plan import Decision, without_fused
from ..planning.plan_dynamic import plan_attention, plan_dynamic
from ..planning.report import group_reasons
from ..planning.result import ConversionResult, Progress
from ..planning.stored_weights import StoredWeights
from ..runtime.executor import PLAIN_MEANS, Means
from ..runtime.machine import made_for, reduces_range, warn_of_saturation
from ..settings.groups import Judging
from ..settings.lengths import SEARCH
from ..settings.recipe import Recipe
from ..settings.setting import settings_of
from .dropping import Dropping, drops_tokens
from .family import Family, OpenData
from .length_search import Searched, search_lengths
from .rotating import rotate
from .transformer_fusion import Fusion, finish_decoder

_PADDING = "is not computed: outputs of tokens that the mask leaves out are 0"
_SOME = "is passed over within whole layers alone: elsewhere what a token gives depends on its batch"
_EXACT = "any CPU: sums of whole layers are exact"


def convert(
    model: ir.Model, recipe: Recipe, _data: OpenData | None, progress: Progress, source: str,
    means: Means = PLAIN_MEANS,
) -> ConversionResult:  # fmt: skip
    """Convert a model, as `Convert` says."""
    rotated = rotate(model, recipe)
    return rotated.tell(_convert(model, recipe, progress, source, means))


def _convert(
    model: ir.Model, recipe: Recipe, progress: Progress, source: str, means: Means = PLAIN_MEANS
) -> ConversionResult:
    """Convert a model, which is rotated where the recipe says so.

    An attention is fused where the recipe takes all three of its projections, and a layer where it takes all of its
    products; their decisions stand for it.
    """
    searched = None
    if recipe.lengths == SEARCH:
        searched = _searched(model, recipe, progress, source, means)
        recipe = _at(recipe, searched.text)
    progress("rewrite", 0, 1)
    plan = _plan(model, recipe)
    reduced = reduces_range(recipe)
    stored = StoredWeights()
    dropping = Dropping(recipe, list(plan.fuse.fused), plan.no_layers)
    layers = QuantizeEncoderLayers(plan.products, plan.fused, stored, recipe.search, dropping.layers)
    if recipe.fuse_layers:
        layers(model)
    decisions = dropping.drop(model, layers.made, [*plan.products, *plan.attentions])
    quantize = QuantizeDynamic(decisions, reduced, recipe.search, stored)
    others = quantize(model)  # than those of whole layers
    if others or layers.made:
        SeparateLayerNorm()(model)
        declare_functions(model)
    fusion = finish_decoder(model, recipe)
    progress("rewrite", 1, 1)
    made = len(plan.fused) + len(plan.fuse.cores) - len(dropping.written_out)
    fused = {"attention": (made, plan.fuse.left)}
    rows = [("made for", _EXACT if layers.made and not others else made_for(reduced))]
    if recipe.fuse_layers:
        fused["layers"] = (len(layers.made), layers.left | _only_cores(plan) or _no_attention(plan))
    if layers.made:
        whole = len(layers.made) == len(plan.fused) + len(plan.no_layers)
        rows.append(("padding", _PADDING if whole else _SOME))
    rows += dropping.rows + (searched.rows if searched is not None else [])
    return ConversionResult(
        decisions=without_fused(plan.told),
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
            **dropping.details,
            **(searched.details if searched is not None else {}),
        },
        rows=[
            *rows,
            *(
                row
                for what, (made, left) in fused.items()
                if _is_told(made, left, fusion)
                for row in _rows(what, made, left)
            ),
            *fusion.rows,
        ],
        passes=plan.left | ({type(layers).__name__: layers.left} if layers.left else {}) | fusion.passes,
        settled={} if searched is None else _settled(searched.text),
        accuracy=None if searched is None else searched.accuracy,
        trail=[] if searched is None else searched.trail,
    )


def _searched(model: ir.Model, recipe: Recipe, progress: Progress, source: str, means: Means) -> Searched:
    """Lengths within the bound of the recipe; the model is not changed."""

    def convert_at(copy: ir.Model, lengths: str) -> None:
        _convert(copy, _at(recipe, lengths), lambda *_: None, source)

    return search_lengths(model, recipe, convert_at, progress, source, means)


def _at(recipe: Recipe, lengths: str) -> Recipe:
    """The recipe with these lengths, by which nothing is judged any more."""
    return recipe.decided(**_settled(lengths))


def _settled(lengths: str) -> dict[str, Any]:
    """What becomes of a recipe when the lengths are found."""
    return {"lengths": lengths} | {key: getattr(Recipe, key) for key in settings_of(Judging)}


def decide(model: ir.Model, recipe: Recipe) -> list[Decision]:
    """What `convert` would decide of a cleaned-up float model, which is changed in place."""
    return _plan(model, recipe).told


_ONLY_CORE = "more is added to the scores than a mask of padding, or heads are rotated"


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
    def no_layers(self) -> dict[str, str]:
        """Why attentions are none of a layer, by name."""
        return self.fuse.left | _only_cores(self)

    @property
    def told(self) -> list[Decision]:
        """On what the model had before."""
        return [*self.products, *(each for each in self.attentions if each.node not in self.fuse.fused)]


def _plan(model: ir.Model, recipe: Recipe) -> _Plan:
    finds_layers = recipe.fuse_layers or drops_tokens(recipe)
    versions = (NORMS, OPSET) if finds_layers else (OPSET,)
    rise = next((rise for rise in map(RaiseOpset, versions) if rise.obstacle(model) is None), None)
    is_new = rise is not None
    # Between what a block of a vision transformer makes and its sum with what it read there may be a scale.
    parts = (RecogniseActivations(), RecogniseNorms(), FoldAffine(all_chains=False)) if finds_layers else ()
    left = run_all(model, (*([rise] if rise is not None else []), SqueezeWeights(), *parts))
    products = plan_dynamic(model, recipe)
    reasons = {decision.node: decision.reason for decision in products if not decision.taken}
    fuse = FuseAttention(reasons.get)
    if recipe.fuse and is_new and any(decision.taken for decision in products):
        # Those of heads stand between products and attention; decoders with a past are fused behind all of this.
        norms = () if FuseCachedAttention.is_for(model) else (RecogniseRmsNorms(),)
        left |= run_all(model, (*norms, fuse))
    attentions = plan_attention(model, recipe, fuse.fused)
    return _Plan(without_fused(products), attentions, fuse, left)


def _only_cores(plan: _Plan) -> dict[str, str]:
    """Attentions of which only the inner part is one node."""
    return {core.name or "": _ONLY_CORE for core in plan.fuse.cores}


def _no_attention(plan: _Plan) -> dict[str, str]:
    """Why there is no layer, where nothing says it otherwise."""
    return {} if plan.fused or plan.fuse.left else {"": "the model has no self-attention to find them by"}


def _grouped(what: str, left: dict[str, str]) -> dict[str, int]:
    return group_reasons([(what, reason) for reason in left.values()])


def _is_told(made: int, left: dict[str, str], fusion: Fusion) -> bool:
    """Of a decoder that was fused there is nothing to say of attentions without a past, where it has none."""
    return bool(made or left or not fusion.rows)


def _rows(what: str, made: int, left: dict[str, str]) -> list[tuple[str, str]]:
    return [(what, f"{made} fused"), *(("", f"{n} left: {reason}") for reason, n in _grouped(what, left).items())]


FAMILY = Family("dynamic", decide, convert)
