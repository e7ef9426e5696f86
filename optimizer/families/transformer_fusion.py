"""Transformers fused once their weights are what they will be: attention, norms, products of one tensor.

No decision on a weight, no calibration and no transform sees another graph for it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import onnx_ir as ir

from ..errors import option
from ..graph.matching import is_standard
from ..passes.base import Left, run_all
from ..passes.fuse_cached_attention import FuseCachedAttention
from ..passes.fuse_heads import FuseHeads
from ..passes.last_logits import LastLogits
from ..passes.merge_products import MergeProducts
from ..passes.recognise_activations import RecogniseActivations
from ..passes.recognise_norms import RecogniseNorms
from ..passes.recognise_rms_norms import RecogniseRmsNorms
from ..passes.separate_layer_norm import SeparateLayerNorm
from ..planning.report import group_reasons
from ..settings.recipe import Recipe

_ONE_ROW = "stock ONNX Runtime refuses several rows with several new tokens on a past; --no-fuse leaves them possible"


@dataclasses.dataclass(frozen=True)
class Fusion:
    """What became of a decoder.

    Attributes:
        rows: For a person, a label and a line each.
        details: The same as plain values.
        passes: What passes left.
        warnings: What the user should know.
    """

    rows: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    passes: Left = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)


def finish_transformer(model: ir.Model, recipe: Recipe) -> Fusion:
    """As `finish_decoder`; a model without a past is fused too where it has attentions."""
    fusion = fuse_decoder(model) if recipe.fuse else Fusion()
    if recipe.fuse and not fusion.rows:
        fusion = fuse_encoder(model)
    return _with_last_logits(fusion, model, recipe)


def finish_decoder(model: ir.Model, recipe: Recipe) -> Fusion:
    """Fuse a model in place where it has an attention with a past and the recipe wants it, and cut its logits."""
    return _with_last_logits(fuse_decoder(model) if recipe.fuse else Fusion(), model, recipe)


def _with_last_logits(fusion: Fusion, model: ir.Model, recipe: Recipe) -> Fusion:
    if not recipe.last_logits:
        return fusion
    last = LastLogits()
    if not last(model):
        return dataclasses.replace(fusion, warnings=[f"{option('last-logits')}: {why}" for why in last.left.values()])
    return dataclasses.replace(
        fusion,
        rows=[*fusion.rows, ("logits", "of the last token alone")],
        details={**fusion.details, "last_logits": last.output},
    )


def fuse_decoder(model: ir.Model) -> Fusion:
    """Fuse a model in place where it has an attention with a past."""
    norms, attention = RecogniseRmsNorms(), FuseCachedAttention()
    if not attention.is_for(model):
        return Fusion()
    norms(model)  # which may stand between products and heads
    attention(model)
    products = MergeProducts()
    products(model)
    SeparateLayerNorm()(model)
    reasons = group_reasons([("attention", reason) for reason in attention.left.values()])
    details = {
        "cached_attention": {"fused": len(attention.fused), "left": reasons},
        "norms": len(norms.made),
        "merged_products": {"made": len(products.merged), "of": sum(products.merged.values())},
    }
    rows = [
        ("decoder", f"{len(attention.fused)} attentions fused with their past"),
        *(("", f"{count} left: {reason}") for reason, count in reasons.items()),
    ]
    if attention.fused:
        rows.append(("", _ONE_ROW))
    rows += _shared_rows(norms, products)
    passes = {type(attention).__name__: attention.left} if attention.left else {}
    return Fusion(rows, details, passes)


def _shared_rows(norms: RecogniseRmsNorms, products: MergeProducts) -> list[tuple[str, str]]:
    rows = []
    if norms.made:
        rows.append(("", f"{len(norms.made)} norms by the root mean square"))
    if products.merged:
        rows.append(("", f"{sum(products.merged.values())} products merged into {len(products.merged)}"))
    return rows


def fuse_encoder(model: ir.Model) -> Fusion:
    """Fuse a model in place where it has an attention without a past."""
    if not any(is_standard(node, "Softmax") for node in model.graph):
        return Fusion()
    rms_norms, attention = RecogniseRmsNorms(), FuseHeads()
    left = run_all(model, (RecogniseActivations(), RecogniseNorms(), rms_norms, attention))
    reasons = group_reasons([("attention", reason) for reason in attention.left.values()])
    if not attention.cores:
        return Fusion(passes=left)
    products = MergeProducts()
    products(model)
    SeparateLayerNorm()(model)
    details = {
        "attention": {"fused": len(attention.cores), "left": reasons},
        "norms": len(rms_norms.made),
        "merged_products": {"made": len(products.merged), "of": sum(products.merged.values())},
    }
    rows = [
        ("attention", f"{len(attention.cores)} fused"),
        *(("", f"{count} left: {reason}") for reason, count in reasons.items()),
    ]
    return Fusion([*rows, *_shared_rows(rms_norms, products)], details, left)
