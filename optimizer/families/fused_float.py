"""No rounding at all: clean-up, and what can be fused. The order of its passes."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from ..graph.matching import is_standard
from ..graph.rewriting import settings_of
from ..passes.base import Left, run_all
from ..passes.fuse_attention import FuseAttention
from ..passes.recognise_activations import RecogniseActivations
from ..passes.recognise_norms import RecogniseNorms
from ..passes.recognise_rms_norms import RecogniseRmsNorms
from ..passes.separate_layer_norm import SeparateLayerNorm
from ..planning.plan import Decision
from ..planning.result import ConversionResult, Progress
from ..runtime.executor import PLAIN_MEANS, Means
from ..settings.node_settings import Kept
from ..settings.recipe import Recipe
from .family import Family, OpenData
from .transformer_fusion import Fusion, finish_decoder


@dataclasses.dataclass(frozen=True)
class _Done:
    decisions: list[Decision]
    left: Left
    fusion: Fusion


def convert(
    model: ir.Model, recipe: Recipe, _data: OpenData | None, progress: Progress, _source: str,
    _means: Means = PLAIN_MEANS,
) -> ConversionResult:  # fmt: skip
    """Convert a model, as `Convert` says."""
    progress("rewrite", 0, 1)
    done = _fuse(model, recipe)
    progress("rewrite", 1, 1)
    fused = sum(decision.taken for decision in done.decisions)
    rows = done.fusion.rows or ([("attention", f"{fused} fused")] if done.decisions and recipe.fuse else [])
    return ConversionResult(
        done.decisions, lambda: (), warnings=done.fusion.warnings, details=done.fusion.details, rows=rows,
        passes=done.left | done.fusion.passes,
    )  # fmt: skip


def decide(model: ir.Model, recipe: Recipe) -> list[Decision]:
    """What `convert` would decide of a cleaned-up float model, which is changed in place."""
    return _fuse(model, recipe).decisions


def _fuse(model: ir.Model, recipe: Recipe) -> _Done:
    """Fuse, and tell by the softmax of each attention what became of it."""
    candidates = [node for node in model.graph if is_standard(node, "Softmax")]
    kept = {node: each for node in candidates if isinstance(each := settings_of(recipe, node), Kept)}
    left: Left = {}
    if recipe.fuse and not kept:
        fuse = FuseAttention()
        left = run_all(model, (RecogniseActivations(), RecogniseNorms(), RecogniseRmsNorms(), fuse))
        if fuse.fused or fuse.cores:
            SeparateLayerNorm()(model)
    fusion = finish_decoder(model, recipe)
    reasons = {name: why for each in (left, fusion.passes) for whys in each.values() for name, why in whys.items()}
    otherwise = "no attention" if recipe.fuse else "fuse is off"
    decisions = [_decision(node, kept.get(node) or reasons.get(node.name or "", otherwise)) for node in candidates]
    return _Done(decisions, left, fusion)


def _decision(node: ir.Node, reason: str) -> Decision:
    if node.graph is None:
        return Decision(node, "", True, scheme="fused")
    return Decision(node, "", False, reason)


FAMILY = Family("float", decide, convert, verb="fuse", is_about_nodes=False)
