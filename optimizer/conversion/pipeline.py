"""Recipe -> ordered passes. The only place that knows the order."""

from __future__ import annotations

import dataclasses
import json
import resource
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from ..calibration import Calibration, Data, Statistics
from ..errors import OnnxpressError, UsageError, option
from ..families import family_of
from ..families.demands import Need, demands_of
from ..graph.rewriting import listed_names
from ..model_io import storage
from ..model_io.normalise import freeze_inputs, normalise
from ..model_io.reading import to_proto
from ..passes.name_nodes import NameNodes
from ..passes.remove_unused import remove_unused
from ..planning.already_quantized import check_not_quantized, quantized_nodes
from ..planning.plan import Decision, as_asked, nested_nodes
from ..planning.plan_foreign import plan_foreign, with_foreign
from ..planning.report import NodeReport, Report, group_reasons
from ..planning.result import ConversionResult, Progress
from ..runtime.executor import Executor, Means, executor_at
from ..runtime.feeds import Feeds
from ..runtime.session import uses_our_ops
from ..settings.recipe import Recipe
from ..sources import resolve
from .annotations import Annotations
from .gate import Gate
from .infer_types import infer_types
from .request import bound_metric, check_request
from .session_process import start_early

if TYPE_CHECKING:
    import onnx

METADATA_KEY = "onnxpress.recipe"
"""Key of the output's metadata that holds the recipe as JSON."""


def optimize(
    model: str | Path | ir.Model | onnx.ModelProto,
    recipe: Recipe | None = None,
    output: str | Path | None = None,
    *,
    calibration: Calibration | None = None,
    dims: Mapping[str, int] | None = None,
    ray: str | None = None,
    progress: Progress = lambda _stage, _done, _total: None,
) -> Report:
    """Convert a model to low-bit forms.

    Args:
        model: A file, a folder of an exported model, a name of the catalogue, or a model in memory, of onnx or onnx_ir,
            which is changed.
        recipe: What to do; int4 weights by default.
        output: The file to write. By default "NAME.SCHEME.onnx" beside the model, for a name of the catalogue in the
            current folder; a model in memory is only written where this is given.
        calibration: What static schemes and sparse learn about tensors from, and weights alone where it is given; a
            model of the catalogue has its own.
        dims: Sizes of open dimensions of the random inputs that the model is checked on, by name, or by input and axis
            as "x:1".
        ray: A Ray cluster that does what does not depend on each other: "auto", "local", "HOST:PORT" or
            "ray://HOST:PORT". The bytes are the same.
        progress: Told how the work goes on.

    Returns:
        What was done.

    Raises:
        UsageError: The output cannot be written where it is asked for, an argument is of another type, the recipe and
            the calibration do not go together, or Ray is not installed.
        OnnxpressError: The model cannot be read, is quantized already or holds nothing to quantize, or no cluster takes
            the work; nothing is written.
    """
    recipe, calibration = recipe or Recipe(), calibration or Calibration()
    for setting, kind in ((recipe, Recipe), (calibration, Calibration)):
        if not isinstance(setting, kind):
            raise UsageError(f"{kind.__name__} expected, not {setting!r:.40}; write {kind.__name__}(...)")
    proto = None
    if not isinstance(model, str | Path | ir.Model):
        proto, model = model, storage.of_proto(model)
    named = None if isinstance(model, ir.Model) or Path(model).exists() else str(model)
    check_request(recipe, calibration, named, ray)
    clock = _Clock()
    if recipe.check is not False:
        start_early()
    if isinstance(model, ir.Model):
        path, source, loaded, size_before = None, model.graph.name or "model", model, 0
        target = storage.check_target(output) if output is not None else None
        normalise(loaded, source)
    else:
        path = resolve(model)
        source, target = str(path), storage.check_target(output or default_output(model, path, recipe))
        storage.check_target(target, [calibration.data, calibration.statistics, recipe.mask])
        loaded = storage.load(path)
        storage.check_apart(target, path, loaded)
        size_before = storage.size_on_disk(path, loaded)
    check_not_quantized(loaded, source)
    if recipe.freeze_inputs:
        freeze_inputs(loaded)
    external = storage.has_external_data(loaded)
    clock.lap("read")

    NameNodes()(loaded)
    annotations = Annotations(loaded)
    given = _CalibrationInput(calibration, recipe, loaded, named, path)
    if dims and given.sample() is not None:
        raise UsageError(f"{option('dim')}: the check runs on the calibration data, which has sizes of its own")
    gate = Gate(loaded, recipe.check, given.sample, dims)
    clock.lap("check")
    if recipe.clean_up:
        progress("clean-up", 0, 1)
        gate.clean_up(loaded)
        progress("clean-up", 1, 1)
    else:
        remove_unused(loaded)  # or what nothing reads would count as a reader of what it reads
        gate.rest()
    infer_types(loaded)
    clock.lap("clean-up")

    asked, foreign, alone = recipe.literally(_names(loaded)), plan_foreign(loaded), _unambiguous(loaded)
    bound = asked.decided(metric=bound_metric(recipe, calibration, path))
    with executor_at(ray) as executor:
        outcome = _convert(loaded, bound, given, source, progress, executor)
    decisions = as_asked(with_foreign(outcome.decisions, foreign), asked)
    open_weights = _open_weights(loaded)
    _refuse_nothing_to_do(source, recipe, decisions, open_weights)
    gate.check_result(loaded, source)
    warnings = _warnings(recipe, decisions) + open_weights + outcome.warnings + annotations.give_back(loaded)
    settled = recipe.decided(**outcome.settled).to_mapping()
    loaded.metadata_props[METADATA_KEY] = json.dumps(settled, sort_keys=True)
    clock.lap("rewrite")

    def written(done: int, total: int) -> None:
        progress("quantize and write", done, total)
        if done == total:  # and joined, and put to disk
            gate.expect_result()

    if target is not None:
        storage.save(loaded, target, external=external, done=written)
    clock.lap("quantize and write")
    if target is not None:
        gate.compare_result(target, ours=uses_our_ops(loaded), last=outcome.details.get("last_logits"))
    clock.lap("compare")
    if proto is not None:
        proto.CopyFrom(to_proto(loaded))
    return Report(
        source=source,
        output=str(target) if target is not None else None,
        recipe=settled,
        rewritten=dict(Counter(d.op_type for d in decisions if d.taken)),
        schemes=dict(Counter(d.scheme for d in decisions if d.taken)),
        left=group_reasons([(d.op_type, d.reason) for d in decisions if not d.taken]),
        weights=tuple(
            dataclasses.replace(weight, nodes=tuple(alone.get(name, name) for name in weight.nodes))
            for weight in outcome.weights()
        ),
        gain=outcome.gain(),
        size_before=size_before,
        size_after=storage.size_on_disk(target, loaded) if target is not None else 0,
        seconds=clock.seconds,
        peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        warnings=tuple(warnings + gate.warnings),
        details={**outcome.details, "check": gate.details},
        rows=(*outcome.rows, *gate.rows),
        passes=outcome.passes,
        outputs=gate.errors,
        accuracy=outcome.accuracy,
        nodes=tuple(_node_report(decision, alone) for decision in decisions),
        trail=tuple(outcome.trail),
    )


def _node_report(decision: Decision, alone: Mapping[str, str]) -> NodeReport:
    """`alone` as `_unambiguous` gives it."""
    name, kind = decision.node_name, decision.node.outputs[0].dtype
    # A weight has the type of what is computed with it; strings have no width.
    width = 0 if kind == ir.DataType.STRING else (kind or ir.DataType.FLOAT).itemsize
    size = int(width * decision.parameters)
    return NodeReport(
        alone.get(name, name),
        decision.op_type,
        decision.taken,
        decision.scheme or decision.reason,
        decision.parameters,
        size,
    )


class _CalibrationInput:
    """What a calibration is to learn from, and what it found there."""

    def __init__(
        self, calibration: Calibration, recipe: Recipe, model: ir.Model, name: str | None, path: Path | None
    ) -> None:
        need = demands_of(recipe.family).need(recipe, calibration.is_given)
        self.asked, self.is_read = calibration, calibration.is_there(name) and need is not Need.NONE
        self._model, self._name, self._path = model, name, path
        self._data: Data | Statistics | None = None

    def open(self) -> Data | Statistics:
        """The data or statistics; raises OnnxpressError."""
        if self._data is None:
            self._data = self.asked.open(self._model, self._name, self._path)
        return self._data

    def data(self) -> Data | None:
        """The data, where it is read and there are no statistics in its place."""
        data = self.open() if self.is_read else None
        return data if isinstance(data, Data) else None

    def sample(self) -> Feeds | None:
        """The first batch of the data, if any is read; raises OnnxpressError."""
        data = self.data()
        return None if data is None else next(iter(data))

    def tell(self, outcome: ConversionResult) -> ConversionResult:
        """The outcome with how many samples there were."""
        seen = self._data.seen if isinstance(self._data, Data) else None
        if seen is None or not isinstance(self._data, Data):
            return outcome
        name, most = self._data.name, self.asked.samples
        few = [f"{seen} samples, and {most} were asked for"] if most is not None and seen < most else []
        return dataclasses.replace(
            outcome,
            warnings=[*outcome.warnings, *(f"{name}: {doubt}" for doubt in [*few, *self._data.doubts])],
            details={"samples": seen, **outcome.details},
            rows=[("calibrated on", f"{seen} samples of {name}"), *outcome.rows],
        )


def _convert(
    model: ir.Model, recipe: Recipe, given: _CalibrationInput, source: str, progress: Progress, executor: Executor
) -> ConversionResult:
    data = given.open if given.is_read else None
    checkpoint = None if given.asked.checkpoint is None else Path(given.asked.checkpoint)
    means = Means(executor, checkpoint)
    return given.tell(family_of(recipe.family).convert(model, recipe, data, progress, source, means))


def decide(model: ir.Model, recipe: Recipe) -> list[Decision]:
    """What `optimize` would decide of the nodes of a model, which is changed, before it calibrates or measures.

    Of a model that it refuses, because it is quantized already, these are the nodes that show it.

    Raises:
        OnnxpressError: The model cannot be prepared for the scheme.
    """
    if before := [Decision(node, "", False, "already quantized") for node in quantized_nodes(model)]:
        return before
    if recipe.freeze_inputs:
        freeze_inputs(model)
    NameNodes()(model)
    if recipe.clean_up:
        Gate(model, recipe.check).clean_up(model)
    else:
        remove_unused(model)
    infer_types(model)
    asked, foreign = recipe.literally(_names(model)), plan_foreign(model)
    return as_asked(with_foreign(family_of(recipe.family).decide(model, asked), foreign), asked)


def _names(model: ir.Model) -> set[str]:
    """What nodes are called in the reports on a cleaned-up model, and by patterns."""
    return {name for path, node in nested_nodes(model.graph, "") for name in listed_names(node, path)}


def _unambiguous(model: ir.Model) -> dict[str, str]:
    """Names of nodes in inner graphs, without where they are, by those with it; not of names that several share."""
    nodes = [(path, node.name or "") for path, node in nested_nodes(model.graph, "")]
    count = Counter(name for _, name in nodes)
    return {f"{path}/{name}": name for path, name in nodes if path and count[name] == 1}


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


def _open_weights(model: ir.Model) -> list[str]:
    """What to say of inputs that could be weights."""
    found = [value.name for value in model.graph.inputs if value.is_initializer() and len(value.shape or ()) > 1]
    if not found:
        return []
    others = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return [
        f"input '{found[0]}'{others} with a value that a caller may override: left as it is; where all callers take "
        f"what is there, {option('freeze-inputs')} makes it a constant"
    ]


def _refuse_nothing_to_do(source: str, recipe: Recipe, decisions: list[Decision], hints: list[str]) -> None:
    if any(d.taken for d in decisions) or not family_of(recipe.family).is_about_nodes:
        return
    reasons = group_reasons([(d.op_type, d.reason) for d in decisions])
    listed = "; ".join(f"{count} {what}" for what, count in reasons.items()) or "no node that the scheme takes"
    what = family_of(recipe.family).verb
    unmatched = "".join(f"; {warning}" for warning in _warnings(recipe, decisions) + hints)
    raise OnnxpressError(f"{source}: nothing to {what}, nothing written ({listed}){unmatched}")


def _warnings(recipe: Recipe, decisions: list[Decision]) -> list[str]:
    nodes = [(listed_names(d.node, d.path), d.op_type) for d in decisions]
    return [f"{pattern} matches no node with a weight" for pattern in recipe.unused_patterns(nodes)]
