"""What a conversion did, left alone, cost and won."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from .output_error import OutputError

if TYPE_CHECKING:
    from rich.console import Console

    from ..quantization.quantized_weight import QuantizedWeight

_WORST = 5


@dataclasses.dataclass(frozen=True)
class WeightReport:
    """One rounded weight.

    Attributes:
        name: The initializer.
        nodes: The nodes that read it: what a recipe's patterns match.
        scheme: Such as "int4".
        parameters: Its elements.
        sqnr: Signal to quantization noise ratio in dB.
        gain: By how much the scale search lowered what it minimises, against plain min/max rounding, in dB. It is no
            measure of the model's outputs.
        method: How its codes were found, such as "rtn" or "gptq"; of a sparse weight, how its blocks were chosen.
        stored: Bytes of what takes its place: codes, scales and what else tells their meaning.
    """

    name: str
    nodes: tuple[str, ...]
    scheme: str
    parameters: int
    sqnr: float
    gain: float
    method: str
    stored: int


@dataclasses.dataclass(frozen=True)
class NodeReport:
    """What became of one node that a scheme could take.

    Attributes:
        name: What a recipe's patterns match.
        op_type: Its operator in the model that was read.
        taken: Whether it was rewritten.
        reason: The scheme that it got, or why it was left.
        parameters: Elements of its weight, 0 where it has none.
        size: Bytes of its weight in the float model.
    """

    name: str
    op_type: str
    taken: bool
    reason: str
    parameters: int
    size: int


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One model that a conversion made and judged on its way.

    Attributes:
        recipe: What it was made by, for a person.
        metric: What it was judged by.
        value: Of the metric.
        accepted: Whether that was good enough to go on with.
        size: Bytes of its weights; None where nobody asked.
        seconds: That it took to make and to judge; None where nobody asked.
        loss: What it lost, in the unit of the bound: of the float model's value, or nats per token.
    """

    recipe: str
    metric: str
    value: float
    accepted: bool
    size: int | None = None
    seconds: float | None = None
    loss: float | None = None


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """A metric of the converted model beside that of the float model; of both more is better.

    Attributes:
        metric: A task, a function of the user's, or the cosine of the outputs with those of float32.
        value: Of the converted model; NaN where it cannot be told, as of outputs of another length.
        float32: Of the float model.
    """

    metric: str
    value: float
    float32: float


def weight_report(name: str, nodes: tuple[str, ...], weight: QuantizedWeight) -> WeightReport:
    """The report of a weight whose scales were not compared with others."""
    sqnr = weight.error.sqnr
    return WeightReport(name, nodes, weight.scheme.name, weight.size, sqnr, 0.0, weight.method, weight.stored)


@dataclasses.dataclass(frozen=True)
class Report:
    """What `optimize` did.

    Attributes:
        source: The model read.
        output: The model written, None when it was not saved.
        recipe: The recipe, as plain values.
        rewritten: Nodes rewritten, by operator.
        schemes: Nodes rewritten, by scheme.
        left: Nodes left alone, by operator and reason.
        weights: The rounded weights.
        gain: The same over all weights.
        size_before: Bytes of the model and its external data.
        size_after: The same for the output.
        seconds: Time of each stage.
        peak_memory: Largest resident set of the process so far, in bytes.
        warnings: What the user should know.
        details: Other findings of the way it was converted, by name.
        rows: The same for a person: a label and a line each.
        passes: What passes over floats left, and why, by the pass and the node's name.
        outputs: How far each output is from the float model's, on the same inputs; empty where the model was not run.
        accuracy: What a calibrated scheme measured of the model; None where it measured nothing.
        nodes: What became of each node that the scheme could take, in the order of the graph.
        trail: What was tried on the way, in order; empty where nothing had to be.
    """

    source: str
    output: str | None
    recipe: dict[str, Any]
    rewritten: dict[str, int]
    schemes: dict[str, int]
    left: dict[str, int]
    weights: tuple[WeightReport, ...]
    gain: float
    size_before: int
    size_after: int
    seconds: dict[str, float]
    peak_memory: int
    warnings: tuple[str, ...] = ()
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: tuple[tuple[str, str], ...] = ()
    passes: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    outputs: tuple[OutputError, ...] = ()
    accuracy: Accuracy | None = None
    nodes: tuple[NodeReport, ...] = ()
    trail: tuple[Attempt, ...] = ()

    @property
    def worst(self) -> list[WeightReport]:
        """The five weights of the largest relative error."""
        return sorted(self.weights, key=lambda weight: weight.sqnr)[:_WORST]

    def to_json(self) -> str:
        """The report as JSON; infinite decibels and NaN become null."""
        values = dataclasses.asdict(self)
        del values["rows"]
        values["worst"] = [weight.nodes[0] for weight in self.worst]
        return json.dumps(_finite(values), indent=2)

    def print(self, console: Console, *, verbose: bool = False) -> None:
        """A table for a person; `verbose` with what each pass left."""
        from rich.table import Table

        table = Table(title=f"{self.source} -> {self.output}", title_justify="left", show_header=False, box=None)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        done = ", ".join(f"{count} {op}" for op, count in self.rewritten.items())
        one = len(self.schemes) == 1
        schemes = ", ".join(scheme if one else f"{count} as {scheme}" for scheme, count in self.schemes.items())
        told = f"{done} as {schemes}" if one else f"{done}: {schemes}"
        table.add_row("rewritten", told if self.rewritten else "nothing; cleaned up alone")
        for what, count in self.left.items():
            table.add_row("left", f"{count} {what}")
        sizes = f"{size_text(self.size_before)} -> {size_text(self.size_after)}"
        change = size_change(self.size_before, self.size_after)
        table.add_row("size", f"{sizes} ({change})" if change else sizes)
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items())
        table.add_row("time", f"{sum(self.seconds.values()):.1f} s ({stages})")
        table.add_row("peak memory", size_text(self.peak_memory))
        for label, line in self.rows:
            table.add_row(label, line)
        if self.gain:
            table.add_row("scale search", f"weighted error {self.gain:.2f} dB below that of plain min/max")
        for index, weight in enumerate(self.worst):
            label = "lowest SQNR" if index == 0 else ""  # signal to quantization noise ratio: more is better
            table.add_row(
                label, f"{weight.sqnr:.1f} dB  {weight.nodes[0]} ({weight.scheme}, {weight.parameters:,} weights)"
            )
        for name, left in self.passes.items() if verbose else ():
            for index, (node, reason) in enumerate(left.items()):
                table.add_row(f"left by {name}" if index == 0 else "", f"{node}: {reason}")
        for warning in self.warnings:
            table.add_row("warning", warning, style="yellow")
        console.print(table)


@dataclasses.dataclass(frozen=True)
class ContextReport:
    """What `compile_context` did.

    Attributes:
        source: The model read.
        output: The model written.
        weights: Name of the file of packed weights beside it.
        compiled: Nodes in the output that stand for compiled ones.
        left: Other nodes of its main graph, which ONNX Runtime runs.
        inside: Nodes of graphs inside nodes, which stay as they are, by operator and reason.
        size_before: Bytes of the model and its external data.
        size_after: The same for the output, its packed weights included.
        size_weights: Bytes of the packed weights.
        seconds: Time of it all.
        peak_memory: Largest resident set of the process so far, in bytes.
    """

    source: str
    output: str
    weights: str
    compiled: int
    left: int
    inside: dict[str, int]
    size_before: int
    size_after: int
    size_weights: int
    seconds: float
    peak_memory: int

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def print(self, console: Console, *, verbose: bool = False) -> None:
        """A table for a person; `verbose` with what each pass left."""
        from rich.table import Table

        table = Table(title=f"{self.source} -> {self.output}", title_justify="left", show_header=False, box=None)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        table.add_row("compiled", f"{self.compiled} nodes")
        table.add_row("left", f"{self.left} nodes for ONNX Runtime")
        for what, count in self.inside.items():
            table.add_row("left", f"{count} {what}")
        table.add_row("size", f"{size_text(self.size_before)} -> {size_text(self.size_after)}")
        table.add_row("weights", f"{size_text(self.size_weights)} in {self.weights}")
        table.add_row("time", f"{self.seconds:.1f} s")
        table.add_row("peak memory", size_text(self.peak_memory))
        console.print(table)


def group_reasons(left: list[tuple[str, str]]) -> dict[str, int]:
    """Count (operator, reason) pairs, most frequent first."""
    counts = Counter(f"{op_type}: {reason}" for op_type, reason in left)
    return dict(counts.most_common())


def size_text(size: int) -> str:
    """Bytes for a person."""
    return f"{size / 1e6:,.1f} MB" if size >= 10**6 else f"{size / 1e3:,.1f} KB" if size >= 1000 else f"{size} bytes"


def size_change(before: int, after: int) -> str:
    """How much smaller or larger a file became; empty where that is not worth a word."""
    times = max(before, after) / max(1, min(before, after))
    if before == 0 or f"{times:.1f}" == "1.0":
        return ""
    return f"{times:.1f}x {'smaller' if after < before else 'larger'}"


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
