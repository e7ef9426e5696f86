"""Calibration by itself: statistics of a model on some data, in a file that can be merged with others."""

from __future__ import annotations

import dataclasses
import functools
import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from ..calibration.collect import collect
from ..calibration.data import Source, open_data
from ..calibration.image_recipe import ImageRecipe
from ..calibration.inputs import inputs_of
from ..calibration.ranges import unusable
from ..calibration.source import SAMPLES, Calibration, own_data, tokenizer_beside
from ..calibration.statistics import Statistics, StatisticsSpec
from ..calibration.windows import predicts_tokens
from ..errors import UsageError
from ..graph.constants import constant_of, is_constant, mark_constants
from ..model_io import storage
from ..passes.name_nodes import NameNodes
from ..passes.preparation import prepare
from ..planning.already_quantized import check_not_quantized
from ..planning.result import Progress
from ..sources import resolve
from .gate import Gate
from .request import check_merge, check_observation

if TYPE_CHECKING:
    from rich.console import Console

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})
_CONVOLUTIONS = ("Conv", "ConvTranspose", "BatchNormalization")
_PRODUCTS = ("MatMul", "Gemm")
_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class CalibrationReport:
    """What a calibration saw.

    Attributes:
        source: The model, or the files that were merged.
        output: The file of statistics.
        tensors: How many tensors were observed.
        batches: How often the model ran, at most.
        unusable: Tensors that cannot be rounded to codes, and why.
        warnings: What is odd about the data.
        seconds: What it took.
        peak_memory: Of the process, in bytes.
    """

    source: str
    output: str
    tensors: int
    batches: int
    unusable: dict[str, str]
    warnings: list[str]
    seconds: float
    peak_memory: int

    def to_json(self) -> str:
        """Everything as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def print(self, console: Console) -> None:
        """Some lines for a person."""
        console.print(f"{self.source}: {self.tensors} tensors in {self.batches} batches -> {self.output}")
        console.print(f"{self.seconds:.1f} s, {self.peak_memory / 1e6:.0f} MB at most")
        for name, reason in list(self.unusable.items())[:_SHOWN]:
            console.print(f"cannot be rounded: {name}: {reason}")
        if len(self.unusable) > _SHOWN:
            console.print(f"and {len(self.unusable) - _SHOWN} more")
        for warning in self.warnings:
            console.print(f"warning: {warning}", style="yellow")


def calibrate(
    model: str | Path,
    data: Source | None,
    output: str | Path,
    *,
    samples: int | None = None,
    batch: int = 1,
    images: str | Path | ImageRecipe | None = None,
    tokenizer: str | Path | None = None,
    length: int | None = None,
    gram: bool = False,
    progress: Progress = lambda _stage, _done, _total: None,
) -> CalibrationReport:
    """Collect statistics of all activations of a model and write them to a file.

    Args:
        model: A file, a folder of an exported model, or a name of the catalogue.
        data: As `open_data` takes it, and so are `samples`, `batch`, `images`, `tokenizer` and `length`; None takes
            what a model of the catalogue brings.
        output: The .npz file to write.
        samples: The most samples to take; all by default, 128 of what the catalogue brings.
        batch: Samples a run.
        images: How images become inputs.
        tokenizer: The tokenizer.json for text; the one beside the model where text is given without.
        length: Tokens of each sample of text.
        gram: Keep X'X of what products with constant weights read, 8 bytes times channels squared each.
        progress: Told how the work goes on.

    Raises:
        UsageError: The data does not fit, or nothing can be written there.
        OnnxpressError: The model or the data cannot be read, or the model is quantized already or cannot be run.
    """
    begin = time.perf_counter()
    if data is None or isinstance(data, str | Path):
        check_observation(model, Calibration(data, images=images, tokenizer=tokenizer))
    path = resolve(model)
    target = storage.check_target(output, [data])
    loaded = storage.load(path)
    storage.check_apart(target, path, loaded)
    check_not_quantized(loaded, str(path))
    if data is None:
        data = own_data(str(model), samples or SAMPLES)
    tokenizer = tokenizer or tokenizer_beside(path, data)
    opened = open_data(
        data, inputs_of(loaded), samples=samples, batch=batch, images=images, tokenizer=tokenizer, length=length,
        decoder=predicts_tokens(loaded),
    )  # fmt: skip
    NameNodes()(loaded)
    gate = Gate(loaded, None, lambda: next(iter(opened)))
    gate.clean_up(loaded)
    prepare(loaded)
    found = collect(loaded, opened, activations(loaded, gram=gram), progress=progress)
    warnings = [*gate.warnings, *(f"{opened.name}: {doubt}" for doubt in opened.doubts)]
    return _finish(found, str(path), target, begin, warnings)


def merge(files: Sequence[str | Path], output: str | Path) -> CalibrationReport:
    """Merge files of statistics, as if all their data had been collected at once.

    Args:
        files: Files that `calibrate` wrote.
        output: The .npz file to write.

    Raises:
        UsageError: There are fewer than two, they are of different models, or nothing can be written there.
        OnnxpressError: A file cannot be read.
    """
    begin = time.perf_counter()
    target = storage.check_target(output)
    check_merge(files)
    found = functools.reduce(Statistics.merge, map(Statistics.load, files))
    return _finish(found, ", ".join(map(str, files)), target, begin)


def _finish(
    found: Statistics, source: str, target: Path, begin: float, warnings: Sequence[str] = ()
) -> CalibrationReport:
    found.save(target)
    reasons = {name: reason for name, tensor in found.items() if (reason := unusable(tensor)) is not None}
    batches = max((tensor.batches for tensor in found.values()), default=0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = time.perf_counter() - begin
    return CalibrationReport(source, str(target), len(found), batches, reasons, list(warnings), seconds, peak)


def activations(model: ir.Model, *, gram: bool = False) -> dict[str, StatisticsSpec]:
    """What to keep of each float tensor of the main graph that depends on the inputs.

    Channels are those of convolutions (axis 1) and of products with constant weights (the last axis).

    Args:
        model: The model, with types inferred where they can be.
        gram: Keep X'X of what products with constant weights read.

    Raises:
        UsageError: There is no such tensor.
    """
    mark_constants(model)
    values = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    values += [value for node in model.graph for value in node.outputs if not is_constant(value)]
    tensors = [value for value in values if isinstance(value.type, ir.TensorType)]  # sequences have a dtype, too
    found = {value.name: _wanted(value, gram) for value in tensors if value.name and value.dtype in _FLOATS}
    if not found:
        raise UsageError("the model has no tensors of float32, float16 or float64 to observe")
    return found


def _wanted(value: ir.Value, gram: bool) -> StatisticsSpec:
    producer = value.producer()
    reads = [node for node, index in value.uses() if index == 0 and _has_weight(node)]
    near = [*reads, producer] if producer is not None and _has_weight(producer) else reads
    if any(node.op_type in _CONVOLUTIONS for node in near):
        return StatisticsSpec(channel_axis=1)
    if not near:
        return StatisticsSpec()
    return StatisticsSpec(channel_axis=-1, gram=gram and any(_reads_rows(node) for node in reads))


def _has_weight(node: ir.Node) -> bool:
    """Whether the second operand is constant, so that the number of channels is the same in all runs."""
    if node.op_type not in _CONVOLUTIONS + _PRODUCTS or node.domain not in ("", "ai.onnx"):
        return False
    weight = node.inputs[1]
    tensor = constant_of(weight)
    return tensor is not None and (node.op_type in _CONVOLUTIONS or len(tensor.shape) == 2) and _reads_rows(node)


def _reads_rows(node: ir.Node) -> bool:
    """Whether the channels of the first operand are its last axis: not of a Gemm that transposes it."""
    flag = node.attributes.get("transA")
    return flag is None or not flag.as_int()
