"""Weights without most of their blocks: which go, what becomes of the rest, and the nodes that compute on it.

    prepare: float rewrites -> collect: X'X of what products read -> scores of blocks -> masks
          -> layer by layer: reconstruction, codes of 8 bits -> nodes

An input x of mean m has X'X / n = C + m m'. Blocks are chosen, and weights moved, under C alone, because a change D of
the weight moves the mean of the output by m'D, which the bias takes back.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from ...calibration import Data, Statistics, StatisticsSpec, TensorStatistics
from ...calibration.collect import collect
from ...calibration.ranges import activation_range
from ...errors import UsageError, option
from ...graph.rewriting import required
from ...passes.base import Left
from ...passes.declare_functions import declare_functions
from ...passes.fuse_heads import FuseHeads
from ...passes.preparation import prepare
from ...passes.quantize_dynamic import QuantizeDynamic
from ...passes.separate_layer_norm import SeparateLayerNorm
from ...passes.sparsify_matmul import SparseLayer, SparsifyMatMul
from ...planning.kept_in_float import kept_in_float
from ...planning.plan import Decision
from ...planning.plan_sparse import plan_sparse
from ...planning.result import ConversionResult, Progress
from ...runtime.executor import PLAIN_MEANS, Means
from ...runtime.machine import made_for, reduces_range
from ...runtime.sparse_cost import measure
from ...settings.recipe import Recipe
from ...sparsity import Block, occupied
from ..demands import Need, demands_of, has_static_codes
from ..family import Family, OpenData
from ..unlike_parts import parts_of, unlike_parts
from .layer import Layer, LayerReport, read_weight, share_out
from .masks import apply_masks
from .sequential import finish_in_order

_USUAL, _FINE = Block(4, 4), Block(4, 1)
_LITTLE = 0.1
"""Sparsity below which the blocks that go save little time, so that those count which lose least."""
_BLOCKS = (Block(4, 4), Block(1, 16), Block(4, 1), Block(1, 4))  # that the kernels are fast for, large ones first
_LARGER = 1.05  # times the weights of the best block that a larger one may keep
_SHOWN = 40  # layers
_NEARLY_ALL = 0.98  # of the weights of a layer


def convert(
    model: ir.Model, recipe: Recipe, data: OpenData | None, progress: Progress, _source: str,
    _means: Means = PLAIN_MEANS,
) -> ConversionResult:  # fmt: skip
    """Convert a model, as `Convert` says.

    Raises:
        UsageError: The recipe needs a calibration and there is none, or its masks do not fit.
        OnnxpressError: ONNX Runtime cannot run the model, or a file cannot be read.
    """
    recipe, how = _masked(model, recipe)
    block, decisions, left = _plan(model, recipe)
    taken = [decision for decision in decisions if decision.taken]
    known = _observe(model, recipe, taken, data, progress)
    if recipe.criterion is None:
        recipe = recipe.decided(criterion="obs" if known.statistics is not None else "magnitude")
    unlike = known.unlike_parts(model, taken, recipe) if has_static_codes(recipe) else {}
    layers: dict[ir.Node, Layer] = {}
    for index, decision in enumerate(decisions):
        if not decision.taken:
            continue
        progress("choose blocks", len(layers), len(taken))
        layer = Layer(decision, block, known.of(decision), recipe)
        reason = unlike.get(_input(decision)) or layer.choose()
        if reason is None:
            layers[decision.node] = layer
        else:
            decisions[index] = decision.but_left(reason)
    progress("choose blocks", len(taken), len(taken))
    share_out(list(layers.values()), recipe)
    rounded: list[Decision] = []
    if recipe.expected_rows is not None:
        rounded = _leave_slow(layers, decisions, recipe, recipe.expected_rows, progress)
    made = _finish(model, recipe, list(layers.values()), known.data, progress)
    if rounded:
        QuantizeDynamic(rounded, reduces_range(recipe), recipe.search)(model)
    if SparsifyMatMul(made)(model):
        SeparateLayerNorm()(model)
    declare_functions(model)
    weights = [decision.weight.value for decision in [*decisions, *rounded] if decision.weight is not None]
    outcome = _outcome(list(layers.values()), recipe, block, decisions, how)
    if rounded:
        told = made_for(reduces_range(recipe))
        outcome.rows.append(("dense layers", f"made for {told}"))
        outcome.details["made_for"] = told
    return dataclasses.replace(outcome, warnings=[*outcome.warnings, *kept_in_float(model, weights)], passes=left)


def decide(model: ir.Model, recipe: Recipe) -> list[Decision]:
    """What `convert` would decide of a model, which CleanUp went over, before it sees data; it is prepared for that.

    Raises:
        OnnxpressError: A file of masks cannot be read or does not fit.
    """
    recipe, _ = _masked(model, recipe)
    block, decisions, _ = _plan(model, recipe)
    if recipe.prune:
        return decisions
    reasons = {d.node: Layer(d, block, None, recipe).choose() for d in decisions if d.taken}
    return [d.but_left(reason) if (reason := reasons.get(d.node)) is not None else d for d in decisions]


def _masked(model: ir.Model, recipe: Recipe) -> tuple[Recipe, str | None]:
    """The recipe for what a model is once its masks are applied, and how that made zeros; None where there are none."""
    if recipe.mask is None:
        return recipe, None
    zeroed = apply_masks(model, recipe.mask)
    how = f"the masks of {recipe.mask}, which set {zeroed:,} weights to zero that were not"
    return recipe.decided(prune=False), how


def _plan(model: ir.Model, recipe: Recipe) -> tuple[Block, list[Decision], Left]:
    """The block, what becomes of each product of the prepared model, and what its preparation left."""
    left = prepare(model, recipe, gemm=False)
    if recipe.fuse:
        FuseHeads()(model)
    block = _block(model, recipe)
    return block, plan_sparse(model, recipe, block), left


def _leave_slow(
    layers: dict[ir.Node, Layer], decisions: list[Decision], recipe: Recipe, rows: int, progress: Progress
) -> list[Decision]:
    """Take out the layers that are faster dense; the decisions on those that are fastest as dynamic int8."""
    rounded = []
    for index, decision in enumerate(decisions):
        layer = layers.get(decision.node)
        if layer is None:
            continue
        progress("time", index, len(decisions))
        cost = measure(layer.pattern(np.dtype(recipe.dtype)), layer.block, rows)
        if cost.sparse < cost.dense:
            continue
        kind = "float32" if cost.dense == cost.float32 else "int8"
        times = f"{1e6 * cost.dense:.0f} us against {1e6 * cost.sparse:.0f}"
        decisions[index] = decision.but_left(f"dense {kind} is as fast with {rows} rows: {times}")
        if kind == "int8":
            rounded.append(decision)
        del layers[decision.node]
    progress("time", len(decisions), len(decisions))
    return rounded


def _block(model: ir.Model, recipe: Recipe) -> Block:
    if recipe.block:
        return Block.parse(recipe.block)
    if not recipe.prune:
        return find_block(model, recipe)
    return _FINE if recipe.sparsity is not None and recipe.sparsity < _LITTLE and not recipe.mask else _USUAL


def find_block(model: ir.Model, recipe: Recipe) -> Block:
    """The largest block by which the zeros of the weights are left out about as well as by any other."""
    kept = dict.fromkeys(_BLOCKS, 0)
    for decision in plan_sparse(model, recipe, Block(1, 1)):
        if decision.taken:
            weight = read_weight(decision)
            for block in _BLOCKS:
                kept[block] += int(occupied(weight, block).sum()) * block.size
    return next(block for block in _BLOCKS if kept[block] <= _LARGER * min(kept.values()))


@dataclasses.dataclass(frozen=True)
class _Known:
    """What is known of the inputs of products: statistics, and the data they are of."""

    statistics: Statistics | None = None
    data: Data | None = None

    def of(self, decision: Decision) -> TensorStatistics | None:
        return self.statistics[_input(decision)] if self.statistics is not None else None

    def unlike_parts(self, model: ir.Model, taken: list[Decision], recipe: Recipe) -> dict[str, str]:
        """Inputs of products that one scale does not suit, by name, and why."""
        seen = self.statistics
        if seen is None:
            return {}
        ranges = partial(activation_range, method=recipe.ranges, percentile=recipe.percentile)
        return unlike_parts(model, _inputs(taken), seen, lambda name: ranges(seen[name]))


def _observe(
    model: ir.Model, recipe: Recipe, taken: list[Decision], data: OpenData | None, progress: Progress
) -> _Known:
    """What there is to know; nothing where that is allowed."""
    if not taken or demands_of("sparse").need(recipe, True) is Need.NONE:
        return _Known()
    if data is None:
        return _Known()
    opened = data()
    settings = StatisticsSpec(histogram=has_static_codes(recipe), channel_axis=-1, gram=recipe.prune)
    wanted = {_input(decision): settings for decision in taken}
    if not isinstance(opened, Statistics):
        parts = parts_of(model, _inputs(taken)) if has_static_codes(recipe) else []
        every = dict.fromkeys(parts, StatisticsSpec(histogram=False)) | wanted
        return _Known(collect(model, opened, every, progress=progress), opened)
    opened.check(model, wanted)
    lacking = [name for name in wanted if opened[name].gram is None]
    if lacking and recipe.prune and recipe.criterion != "magnitude":
        key = (
            f'criterion "{recipe.criterion}"'
            if recipe.criterion
            else 'criterion "obs", the default where there is data,'
        )
        raise UsageError(
            f"{key} needs X'X of the inputs of products, and the statistics hold none of {lacking[0]}: collect them "
            'with onnxpress calibrate --gram, or take criterion "magnitude"'
        )
    return _Known(opened)


def _input(decision: Decision) -> str:
    return required(decision.node.inputs[0]).name or ""


def _inputs(decisions: list[Decision]) -> list[ir.Value]:
    return [required(decision.node.inputs[0]) for decision in decisions]


def _finish(
    model: ir.Model, recipe: Recipe, layers: list[Layer], data: Data | None, progress: Progress
) -> dict[ir.Node, SparseLayer]:
    """What takes the place of each layer's weight."""
    if recipe.sequential and data is not None and any(layer.moves for layer in layers):
        return finish_in_order(model, layers, data, progress)
    made: dict[ir.Node, SparseLayer] = {}
    for layer in layers:
        progress("prune", len(made), len(layers))
        made[layer.node] = layer.finish(layer.moments())
    progress("prune", len(layers), len(layers))
    return made


def _outcome(
    layers: list[Layer], recipe: Recipe, block: Block, decisions: list[Decision], how: str | None
) -> ConversionResult:
    reports = [layer.report for layer in layers if layer.report is not None]
    total = sum(report.size for report in reports)
    zeros = sum(report.size * report.sparsity for report in reports)
    if how is None:
        criterion = f"criterion {layers[0].criterion}" if layers else "nothing"
        how = criterion if recipe.prune else "zeros that were there"
    rows = [("sparsity", f"{100 * zeros / max(1, total):.1f} % of {total:,} weights, in blocks of {block}, by {how}")]
    rows += [("layer", report.line()) for report in reports[:_SHOWN]]
    if len(reports) > _SHOWN:
        rows.append(("", f"and {len(reports) - _SHOWN} more layers: see --json"))
    details: dict[str, Any] = {
        "sparsity": zeros / max(1, total),
        "block": str(block),
        "criterion": how,
        "layers": [dataclasses.asdict(report) for report in reports],
    }
    weights = tuple(report.as_weight(recipe.dtype) for report in reports)
    return ConversionResult(decisions, lambda: weights, warnings=_emptied(reports, recipe), details=details, rows=rows)


def _emptied(reports: list[LayerReport], recipe: Recipe) -> list[str]:
    """The warning about layers of which next to nothing is left."""
    found = [report for report in reports if report.sparsity >= _NEARLY_ALL]
    if not found:
        return []
    first = f"{found[0].node} loses {100 * found[0].sparsity:.1f} % of its weights"
    which = first if len(found) == 1 else f"{first}, and {len(found) - 1} more lose nearly all of theirs"
    advice = ["judge the model by a task", "remove less"]
    if recipe.prune and recipe.criterion == "magnitude":
        advice.append(f"choose by data ({option('calibration')})")
    if recipe.prune and recipe.allocation == "sensitivity":
        advice.append(f"remove the same share of each layer ({option('allocation')} uniform)")
    return [f"{which}: {', or '.join(advice)}"]


FAMILY = Family("sparse", decide, convert, verb="make sparse")
