"""Where the time of a model goes: by kind of step, and how near products come to what the machine can do."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnxpress import ep

from ..runtime.feeds import Feeds
from ..runtime.node_events import NodeEvent
from ..runtime.profiled_session import ProfiledSession
from ..runtime.session import session_options

if TYPE_CHECKING:
    from rich.console import Console

PRODUCTS, CONVOLUTIONS, LAYERS, ATTENTION = "products", "convolutions", "whole layers", "attention"
OTHERS = "others, element by element"

_RECURRENT = "LSTM GRU RNN DynamicQuantizeLSTM"
_KINDS = {
    PRODUCTS: "MatMul Gemm FusedMatMul FusedGemm QGemm QLinearMatMul MatMulInteger MatMulIntegerToFloat MatMulNBits "
    f"DynamicQuantizeMatMul MatMulMiniFloat BlockSparseMatMul Einsum {_RECURRENT}",
    CONVOLUTIONS: "Conv FusedConv NhwcFusedConv QLinearConv ConvInteger ConvTranspose ConvMiniFloat",
    LAYERS: "EncoderLayer",
    ATTENTION: "Attention MultiHeadAttention QAttention GroupQueryAttention RotaryEmbedding Softmax LogSoftmax",
    "norms": "LayerNormalization SkipLayerNormalization SimplifiedLayerNormalization RMSNormalization "
    "SkipSimplifiedLayerNormalization InstanceNormalization GroupNormalization BatchNormalization "
    "EmbedLayerNormalization",
    "activations": "Gelu FastGelu BiasGelu QuickGelu Erf Tanh Sigmoid Relu LeakyRelu Clip HardSwish HardSigmoid Elu "
    "Selu PRelu Softplus Mish Swish QLinearSigmoid QLinearLeakyRelu",
    "tables": "Gather GatherND GatherElements GatherBlockQuantized",
    "conversions": "QuantizeLinear DequantizeLinear DynamicQuantizeLinear Cast",
    "moves": "Transpose Reshape Concat Slice Split Expand Squeeze Unsqueeze Flatten Pad Tile Shape ReorderInput "
    "ReorderOutput QLinearConcat ScatterND ScatterElements Identity ConstantOfShape",
}  # fmt: skip
_OF_TWO = frozenset(["MatMul", "FusedMatMul", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat"])
"""Products of a weight or of two activations."""
_KIND = {op_type: kind for kind, listed in _KINDS.items() for op_type in listed.split()}


@dataclasses.dataclass(frozen=True)
class Profiled:
    """A model to run.

    Attributes:
        name: What the user calls it.
        path: Its file.
        options: Of `session_options`.
        feeds: Its inputs.
    """

    name: str
    path: Path
    options: Mapping[str, Any]
    feeds: Feeds


@dataclasses.dataclass(frozen=True)
class Step:
    """All nodes of one kind, in one run of a model.

    Attributes:
        kind: Such as "products".
        nodes: How many.
        seconds: That they take, the sum of medians.
        operations: Multiplications and additions of products, as far as shapes tell them; 0 where they do not.
        peak_share: Operations a second over the int8 rate of all threads out of registers; None without operations.
    """

    kind: str
    nodes: int
    seconds: float
    operations: int
    peak_share: float | None


@dataclasses.dataclass(frozen=True)
class Steps:
    """A model's time.

    Attributes:
        model: What the user called it.
        seconds: Of all nodes.
        steps: The longest first.
    """

    model: str
    seconds: float
    steps: list[Step]


def step_times(runs: Sequence[Profiled], folder: Path, *, peak: float, rounds: int) -> list[Steps]:
    """Run models in turns under ONNX Runtime's profiler.

    Args:
        runs: What to run.
        folder: Where the profiler may write.
        peak: int8 operations a second of the machine.
        rounds: Turns of three counted runs, each behind a pause and an uncounted one.

    Raises:
        OnnxpressError: ONNX Runtime cannot load or run a model.
    """
    with contextlib.ExitStack() as stack:
        sessions = []
        for index, run in enumerate(runs):
            options = session_options(**run.options)
            sessions.append(ProfiledSession(run.path, options, run.name, folder / f"profile{index}"))
            stack.callback(sessions[-1].stop)
        for _ in range(rounds):
            for run, session in zip(runs, sessions, strict=True):
                session.turn(run.feeds)
        return [
            _by_kind(run.name, session.end(), session.counted, peak)
            for run, session in zip(runs, sessions, strict=True)
        ]


def _by_kind(name: str, events: Sequence[NodeEvent], counted: Sequence[bool], peak: float) -> Steps:
    runs: dict[str, list[NodeEvent]] = defaultdict(list)
    for event in events:
        runs[event.name].append(event)
    seconds: dict[str, float] = defaultdict(float)
    operations: dict[str, int] = defaultdict(int)
    nodes: dict[str, int] = defaultdict(int)
    for of_node in runs.values():
        per_run = max(len(of_node) // len(counted), 1)  # beyond one: a node of a loop's body
        flags = [flag for flag in counted for _ in range(per_run)]
        times = [event.seconds for event, flag in zip(of_node, flags, strict=False) if flag]
        kind = kind_of(of_node[0])
        nodes[kind] += 1
        seconds[kind] += per_run * float(np.median(times or [0.0]))
        operations[kind] += per_run * operations_of(of_node[-1])
    steps = [
        Step(kind, nodes[kind], spent, done, done / spent / peak if done and spent else None)
        for kind, spent in seconds.items()
        for done in [operations[kind]]
    ]
    return Steps(name, sum(seconds.values()), sorted(steps, key=lambda step: -step.seconds))


def kind_of(event: NodeEvent) -> str:
    """The kind of step that a node is."""
    if event.provider == ep.NAME:
        return "tables" if event.reads_numbers else PRODUCTS
    kind = _KIND.get(event.op_type, OTHERS)
    # A weight has two axes, or is kept by the kernel and not listed; a second operand of more is one of attention.
    operands = [shape for shape in event.inputs if len(shape) > 2]
    return ATTENTION if event.op_type in _OF_TWO and len(operands) > 1 else kind


def operations_of(event: NodeEvent) -> int:
    """Multiplications and additions of products, two for each pair of numbers; 0 where shapes do not tell them."""
    count = _COUNTS.get(event.op_type, _of_product if kind_of(event) in (PRODUCTS, ATTENTION) else None)
    if count is None or not all(shape and math.prod(shape) for shape in (*event.inputs[:1], *event.outputs[:1])):
        return 0
    return count(event)


def _of_product(event: NodeEvent) -> int:
    (first, *_), (made, *_) = event.inputs, event.outputs
    rows = math.prod(made[:-1])
    alike = len(first) == len(made) and math.prod(first) % rows == 0
    inner = math.prod(first) // rows if alike else first[-1]  # the former is right of a transposed first one, too
    return 2 * math.prod(made) * inner


def _of_convolution(event: NodeEvent) -> int:
    (first, *others), (made, *_) = event.inputs, event.outputs
    kernel = next((shape for shape in others if len(shape) == len(first)), None)
    return 2 * math.prod(made) * math.prod(kernel[1:]) if kernel else 0


def _of_attention(event: NodeEvent) -> int:
    """With the projections, whose weight is the second input."""
    (batch, length, _), weight, width = event.inputs[0], event.inputs[1], event.outputs[0][-1]
    return 2 * batch * length * math.prod(weight) + 4 * batch * length * length * width


def _of_layer(event: NodeEvent) -> int:
    batch, length, width = event.inputs[0]
    weights = sum(math.prod(shape) for shape in event.inputs[1:] if len(shape) == 2 and width in shape)
    return 2 * batch * length * weights + 4 * batch * length * length * width


def _unknown(_: NodeEvent) -> int:
    return 0


_COUNTS: dict[str, Callable[[NodeEvent], int]] = {
    **dict.fromkeys(_KINDS[CONVOLUTIONS].split(), _of_convolution),
    **dict.fromkeys(_KINDS[ATTENTION].split(), _unknown),
    **dict.fromkeys((*_RECURRENT.split(), "Einsum", "ConvTranspose"), _unknown),
    **dict.fromkeys(("Attention", "QAttention"), _of_attention),
    "EncoderLayer": _of_layer,
}


def print_steps(found: Sequence[Steps], console: Console) -> None:
    """A table for a person: a row for each kind, milliseconds and shares for each model."""
    from rich.table import Table

    table = Table(title="where the time goes, by ONNX Runtime's profiler", title_justify="left", box=None)
    table.add_column("kind of step")
    for each in found:
        table.add_column(f"{Path(each.model).name}\nms", justify="right")
        table.add_column("share", justify="right")
        table.add_column("of int8 peak", justify="right")
    for kind in kinds(found):
        row = [kind]
        for each in found:
            step = next((step for step in each.steps if step.kind == kind), None)
            row += ["", "", ""] if step is None else _cells(step, each.seconds)
        table.add_row(*row)
    table.add_row("all", *(cell for each in found for cell in (f"{1e3 * each.seconds:.2f}", "", "")))
    console.print(table)


def kinds(found: Sequence[Steps]) -> list[str]:
    """Kinds of steps that models have, those first that take most of one of them."""
    most: dict[str, float] = defaultdict(float)
    for each in found:
        for step in each.steps:
            most[step.kind] = max(most[step.kind], step.seconds / (each.seconds or 1.0))
    return sorted(most, key=lambda kind: -most[kind])


def _cells(step: Step, seconds: float) -> list[str]:
    share = "" if step.peak_share is None else f"{step.peak_share:.0%}"
    return [f"{1e3 * step.seconds:.2f}", f"{step.seconds / (seconds or 1.0):.0%}", share]
