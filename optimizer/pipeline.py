"""Recipe -> ordered passes. The only place that knows the order."""

from __future__ import annotations

import json
import math
import resource
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
from onnxpress.custom_ops import functions

from . import storage
from .errors import OnnxpressError, UsageError
from .passes import CleanUp, Decision, QuantizeGather, QuantizeMatMul, RaiseOpset, plan
from .passes.lazy_weight import LazyWeight
from .passes.quantize_matmul import needs_our_domain
from .quantization.rtn import decibels
from .recipe import Recipe
from .report import Report, WeightReport, group_reasons

METADATA_KEY = "onnxpress.recipe"
"""Key of the output's metadata that holds the recipe as JSON."""

Progress = Callable[[str, int, int], None]
"""Called with the stage, what is done of it, and the whole."""

_BLOCKED_DEQUANTIZE_OPSET = 21
_OVERLOAD_IR_VERSION = 10


def optimize(
    model: str | Path | ir.Model,
    recipe: Recipe | None = None,
    output: str | Path | None = None,
    *,
    progress: Progress = lambda _stage, _done, _total: None,
) -> Report:
    """Convert a model to low-bit weights.

    Args:
        model: A file, a folder of an exported model, a name of the catalogue, or a model in memory, which is changed.
        recipe: What to do; int4 weights by default.
        output: The file to write. By default "NAME.SCHEME.onnx" beside the model, for a name of the catalogue in the
            current folder; a model in memory is only written where this is given.
        progress: Told how the work goes on.

    Returns:
        What was done.

    Raises:
        UsageError: The output cannot be written where it is asked for.
        OnnxpressError: The model cannot be read or holds nothing to quantize; nothing is written then.
    """
    recipe = recipe or Recipe()
    clock = _Clock()
    if isinstance(model, ir.Model):
        source, loaded, size_before = model.graph.name or "model", model, 0
        target = storage.check_target(output) if output is not None else None
    else:
        path = storage.resolve(model)
        source, target = str(path), storage.check_target(output or default_output(model, path, recipe))
        if target.exists() and target.samefile(path):
            raise UsageError(f"{target}: is the model itself, which would be lost; name another file with --output")
        loaded = storage.load(path)
        size_before = storage.size_on_disk(path, loaded)
    external = storage.has_external_data(loaded)
    clock.lap("read")

    if recipe.clean_up:
        progress("clean-up", 0, 1)
        CleanUp()(loaded)
        progress("clean-up", 1, 1)
    clock.lap("clean-up")

    decisions = plan(loaded, recipe)
    _refuse_nothing_to_do(source, decisions)
    if RaiseOpset(_opset_needed(recipe, decisions))(loaded):
        decisions = plan(loaded, recipe)
    product, gather = QuantizeMatMul(recipe), QuantizeGather()
    product(loaded, decisions)
    gather(loaded, decisions)
    _finish(loaded, recipe)
    clock.lap("rewrite")

    lazy = [*product.weights, *gather.weights]
    if target is not None:
        storage.save(
            loaded, target, external=external, done=lambda done, total: progress("quantize and write", done, total)
        )
    clock.lap("quantize and write")
    return Report(
        source=source,
        output=str(target) if target is not None else None,
        recipe=recipe.to_mapping(),
        rewritten=dict(Counter(d.op_type for d in decisions if d.taken)),
        schemes=dict(Counter(d.reason for d in decisions if d.taken)),
        left=group_reasons([(d.op_type, d.reason) for d in decisions if not d.taken]),
        weights=tuple(_weight_report(weight) for weight in lazy if weight.error is not None),
        gain=_gain(lazy),
        size_before=size_before,
        size_after=storage.size_on_disk(target, loaded) if target is not None else 0,
        seconds=clock.seconds,
        peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        warnings=tuple(_warnings(loaded, recipe, decisions) + product.warnings),
    )


def default_output(model: str | Path, path: Path, recipe: Recipe) -> Path:
    """Where the output goes when nobody says."""
    if not Path(model).exists():
        return Path(f"{model}.{recipe.scheme}.onnx")
    return path.with_name(f"{path.stem}.{recipe.scheme}.onnx")


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now


def _refuse_nothing_to_do(source: str, decisions: list[Decision]) -> None:
    if any(d.taken for d in decisions):
        return
    reasons = group_reasons([(d.op_type, d.reason) for d in decisions])
    if any(d.reason == "already quantized" for d in decisions):
        raise OnnxpressError(f"{source}: the model is already quantized; start from the float model")
    listed = "; ".join(f"{count} {what}" for what, count in reasons.items()) or "no MatMul, Gemm or Gather"
    raise OnnxpressError(f"{source}: nothing to quantize, nothing written ({listed})")


def _opset_needed(recipe: Recipe, decisions: list[Decision]) -> int:
    if recipe.form == "qdq":
        return _BLOCKED_DEQUANTIZE_OPSET
    ours = any(d.settings is not None and needs_our_domain(recipe, d.settings.weight.bits) for d in decisions)
    return functions.MIN_OPSET if ours else 1


def _finish(model: ir.Model, recipe: Recipe) -> None:
    """Remove what nobody uses any more, and say in the model where it comes from."""
    import onnx_ir.passes.common as common

    common.RemoveUnusedNodesPass()(model)
    if any(function.domain == functions.DOMAIN for function in model.functions.values()):
        model.graph.opset_imports[functions.DOMAIN] = functions.OPSET
        model.ir_version = max(model.ir_version, _OVERLOAD_IR_VERSION)
    model.metadata_props[METADATA_KEY] = json.dumps(recipe.to_mapping(), sort_keys=True)


def _weight_report(weight: LazyWeight) -> WeightReport:
    assert weight.error is not None
    return WeightReport(
        weight.name, tuple(weight.nodes), f"int{weight.scheme.bits}", weight.weight.tensor.size,
        weight.error.sqnr, weight.error.gain,
    )  # fmt: skip


def _gain(weights: list[LazyWeight]) -> float:
    errors = [weight.error for weight in weights if weight.error is not None]
    return decibels(math.fsum(e.baseline for e in errors), math.fsum(e.error for e in errors)) if errors else 0.0


def _warnings(model: ir.Model, recipe: Recipe, decisions: list[Decision]) -> list[str]:
    names = [(d.node.name or "", d.op_type) for d in decisions]
    found = [f"{pattern} matches no node with a weight" for pattern in recipe.unused_patterns(names)]
    if any(d.reason == "already quantized" for d in decisions):
        found.append("parts of the model were quantized before and stay as they are")
    kept = {value.name for value in storage.initializers(model)}
    doubled = {d.weight.value.name for d in decisions if d.taken and d.weight and d.weight.value.name in kept}
    found += [f"{name} also stays in float: another node reads it" for name in sorted(filter(None, doubled))]
    return found
