"""Where a converted model departs from its original, tensor by tensor.

Tensors of the main graphs are matched by name. Error accumulates along a network, so besides its own noise a tensor
gets the noise it added: noise over signal, minus the largest such ratio among the nearest matched tensors it is made
of. The layer that hurts is the one that adds most.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..errors import OnnxpressError, UsageError, option
from ..evaluation.language import Passage, text_judge
from ..evaluation.outputs import measure
from ..evaluation.texts import COMPARING, EMBEDDINGS, KL, Text
from ..model_io import storage
from ..model_io.external_data import common_folder
from ..model_io.reading import to_proto
from ..planning.block_weights import sparsity_of
from ..planning.output_error import OutputError
from ..runtime.feeds import Feeds, arrays_of, default_inputs, random_feeds, read_feeds, shared_inputs, symbolic_sizes
from ..runtime.session import (  # fmt: skip
    FOLDER_KEY,
    is_compiled,
    open_session,
    provider_options,
    session_options,
    uses_our_ops,
)
from ..runtime.token_limits import token_limits
from ..sources import resolve
from .evaluate import TaskResult, check, evaluate

if TYPE_CHECKING:
    from rich.console import Console

_GROUP = 256  # tensors that are held at a time, for each model
DEFAULT_DIMS = {"batch": 2, "sequence": 32, "past": 0}
"""Sizes of random inputs where nobody says."""


@dataclasses.dataclass(frozen=True)
class TensorError:
    """One matched tensor.

    Attributes:
        name: Its name in both models.
        op_type: The operator that makes it in the second model.
        sqnr: Signal to noise ratio of the second model against the first in dB; NaN where either holds NaN.
        cosine: Cosine of the two as vectors.
        added: Noise over signal that this tensor has beyond what it was made of.
        output: Whether it is an output of the model.
        sparsity: Share of the weight of that operator which is zero or left out, None where it has none.
    """

    name: str
    op_type: str
    sqnr: float
    cosine: float
    added: float
    output: bool
    sparsity: float | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two models on the same inputs.

    Attributes:
        first: The reference.
        second: What is judged.
        tensors: Matched tensors, the one that adds most noise first.
        unmatched: Float outputs of nodes of the first model that the second lacks.
        other_lengths: Outputs that cannot be compared, such as audio of a duration that the model itself tells, in the
            model's order.
        judged: Both models by a task, where one was asked for.
    """

    first: str
    second: str
    tensors: list[TensorError]
    unmatched: int
    other_lengths: list[OutputError]
    judged: tuple[TaskResult, ...] = ()

    @property
    def outputs(self) -> list[TensorError]:
        """The outputs of the model."""
        return [tensor for tensor in self.tensors if tensor.output]

    def to_json(self) -> str:
        """Everything as JSON; infinite and undefined decibels become null."""
        values = dataclasses.asdict(self)
        for tensor in values["tensors"]:
            tensor.update({k: None for k, v in tensor.items() if isinstance(v, float) and not math.isfinite(v)})
        return json.dumps(values, indent=2)

    def print(self, console: Console, top: int = 20) -> None:
        """A table for a person."""
        from rich.table import Table

        table = Table(title=f"{self.second} against {self.first}", title_justify="left", box=None)
        is_sparse = any(tensor.sparsity for tensor in self.tensors)
        for column in ("tensor", "op", "SQNR dB", "cosine", "noise added", *(["zeros"] if is_sparse else [])):
            table.add_column(column, justify="left" if column in ("tensor", "op") else "right", overflow="fold")
        for tensor in self.outputs[:top]:
            table.add_row(*_cells(tensor)[: len(table.columns)], style="bold")
        for tensor in [t for t in self.tensors if not t.output][:top]:
            table.add_row(*_cells(tensor)[: len(table.columns)])
        console.print(table)
        for output in self.other_lengths:
            console.print(str(output), style="yellow")
        for result in self.judged:
            told = ", ".join(f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in result.details.items())
            console.print(f"{result.task} {result.value:.5g}  {result.model}  ({told})", soft_wrap=True)
        inner = len(self.tensors) - len(self.outputs)
        console.print(f"{inner} inner tensors matched, {self.unmatched} not; those inside subgraphs are out of reach")


def _cells(tensor: TensorError) -> tuple[str, ...]:
    zeros = "" if tensor.sparsity is None else f"{100 * tensor.sparsity:.1f} %"
    return (
        tensor.name, tensor.op_type, f"{tensor.sqnr:.1f}", f"{tensor.cosine:.5f}", f"{100 * tensor.added:.3g} %", zeros
    )  # fmt: skip


def compare(
    first: str | Path,
    second: str | Path,
    *,
    data: str | Path | None = None,
    dims: dict[str, int] | None = None,
    provider: bool = False,
    claim: str | None = None,
    task: str | None = None,
    text: Text | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda _stage, _done, _total: None,
) -> Comparison:
    """Run two models on the same inputs and compare every tensor they share.

    Args:
        first: The reference: a file, a folder or a name of the catalogue.
        second: The model to judge.
        data: An .npz file of inputs; random ones otherwise.
        dims: Sizes of symbolic dimensions for random inputs, see `random_feeds`.
        provider: Run the model to judge on our execution provider.
        claim: The same, where it takes the nodes of these families, see `ep.append`.
        task: A task by which both are judged, too, as `evaluate` takes it; with a text it is kl by default.
        text: What perplexity, kl and embeddings read; without `data` the models run on its first window, except for
            embeddings, with random inputs.
        seed: Of random inputs.
        progress: Told how the work goes on.

    Raises:
        UsageError: The inputs do not fit, the models have different inputs or outputs, the reference is compiled, or
            the task does not fit.
        OnnxpressError: A model cannot be loaded or run.
    """
    models = [_Probe(resolve(first)), _Probe(resolve(second), provider_options(provider, claim))]
    if is_compiled(models[0].model):
        raise UsageError(
            f"{first}: is compiled for our execution provider; the reference has to be a model that ONNX Runtime runs "
            "without it, such as the one that it was made of"
        )
    one, other = (probe.session.get_inputs() for probe in models)
    inputs = shared_inputs(str(first), one, str(second), other)
    if text is not None and dims:
        raise UsageError(f"{option('dim')}: the text has sizes of its own; leave one out")
    task = KL if task is None and text is not None else task
    if task is not None:
        check(first, task, text=text)
    if data:
        feeds = read_feeds(data, inputs, _shared_defaults(*models))
    elif text is not None and task != EMBEDDINGS:
        feeds, _, _ = next(iter(Passage(text, models[0].model, models[0].path)))
    else:
        feeds = random_feeds(inputs, {**DEFAULT_DIMS, **(dims or {})}, seed, limits=token_limits(models[0].model))
    outputs = _outputs(first, models[0], second, models[1])
    known = set(models[0].tensors) - set(outputs)
    shared = [*outputs, *(name for name in models[1].tensors if name in known)]
    found: dict[str, tuple[float, float]] = {}
    other_lengths: list[OutputError] = []
    for begin in range(0, len(shared), _GROUP):
        progress("compare", begin, len(shared))
        group = shared[begin : begin + _GROUP]
        for name, *values in zip(group, *(probe.run(group, feeds) for probe in models), strict=True):
            a, b = map(_joined, values)
            if name in outputs and a.shape != b.shape:
                other_lengths.append(OutputError(name, shapes=(a.shape, b.shape)))
            elif a.shape == b.shape and all(_is_comparable(array, name in outputs) for array in (a, b)):
                found[name] = measure(a, b)
    progress("compare", len(shared), len(shared))
    if not found and not other_lengths:
        raise OnnxpressError(f"{first} and {second} share no float tensor; were they made from the same model?")
    errors = _attribute(models[1].model, found, set(outputs))
    unmatched = len(set(models[0].tensors) - set(shared))
    judged = () if task is None else _judged((str(first), str(second)), models, task, text)
    return Comparison(str(first), str(second), errors, unmatched, other_lengths, judged)


def _judged(names: Sequence[str], models: Sequence[_Probe], task: str, text: Text | None) -> tuple[TaskResult, ...]:
    """Both models by a task; of one that compares with the first, the second alone."""
    if task not in COMPARING:
        return tuple(
            evaluate(name, task, session=probe.session, text=text) for name, probe in zip(names, models, strict=True)
        )
    judge = text_judge(task, text, models[0].model, models[0].path, names[1], lambda: models[0].session)
    score = judge(models[1].session)
    return (TaskResult(names[1], task, task, score.value, score.details),)


def _shared_defaults(one: _Probe, other: _Probe) -> list[Any]:
    """Inputs that need not be given, of both models."""
    names = {node.name for node in default_inputs(other.session)}
    return [node for node in default_inputs(one.session) if node.name in names]


def _outputs(first: str | Path, one: _Probe, second: str | Path, other: _Probe) -> list[str]:
    """The outputs, which are compared in any case."""
    ours, theirs = ([value.name or "" for value in probe.model.graph.outputs] for probe in (one, other))
    if set(ours) != set(theirs):
        raise UsageError(f"{second}: has the outputs {', '.join(theirs)}, {first} has {', '.join(ours)}")
    return ours


def _joined(value: object) -> npt.NDArray[Any]:
    """A tensor as it is, several of them one behind the other."""
    arrays = arrays_of(value)
    return arrays[0] if isinstance(value, np.ndarray) else np.concatenate([np.zeros(0), *map(np.ravel, arrays)])


def _is_comparable(array: npt.NDArray[Any], is_output: bool) -> bool:
    """Whether it holds floats; outputs may be other numbers, too."""
    return array.dtype.kind in ("fiub" if is_output else "f")


class _Probe:
    """A model whose inner tensors can be read. Nothing is written beside it."""

    def __init__(self, path: Path, provider: dict[str, str] | None = None) -> None:
        self.path, self._provider = path, provider
        self.model = storage.load(path)
        self._folder = common_folder(self.model, path)
        self.tensors = _float_tensors(self.model)

    @cached_property
    def session(self) -> Any:
        """Of the model as it is."""
        return self._open(self.path)

    def _open(self, source: Path | bytes) -> Any:
        of_bytes = {FOLDER_KEY: str(self._folder), "ep.context_file_path": str(self.path)}
        config = of_bytes if isinstance(source, bytes) else {}
        options = session_options(ours=uses_our_ops(self.model), provider=self._provider, config=config)
        return open_session(source, options, self.path)

    def run(self, names: Sequence[str], feeds: Feeds) -> list[npt.NDArray[Any]]:
        """Values of the named tensors."""
        import onnx

        proto = to_proto(self.model)
        typed = {value.name: value for value in proto.graph.output}  # of a compiled node nobody else knows the type
        wanted = [typed.get(name) or onnx.ValueInfoProto(name=name) for name in names]
        del proto.graph.output[:]
        proto.graph.output.extend(wanted)
        try:
            values: list[npt.NDArray[Any]] = self._open(proto.SerializeToString()).run(list(names), feeds)
        except OnnxpressError:
            raise
        except Exception as error:  # ONNX Runtime raises a type for each of its status codes
            sizes = ", ".join(symbolic_sizes(self.session.get_inputs())) or "none"
            raise OnnxpressError(
                f"{self.path}: cannot run: {str(error).splitlines()[0]} (give inputs with "
                f"{option('data')}, or sizes with {option('dim')} "
                f"NAME=SIZE, of which there are {sizes})"
            ) from error
        return values


def _float_tensors(model: ir.Model) -> list[str]:
    """Outputs of the main graph's nodes that are, or may be, floats."""
    floats = (None, ir.DataType.FLOAT, ir.DataType.FLOAT16)
    return [
        value.name
        for node in model.graph
        if node.op_type not in ("Constant", "Shape", "DequantizeLinear", "Cast")
        for value in node.outputs
        if value.name and value.dtype in floats and not isinstance(value.type, ir.SequenceType | ir.OptionalType)
    ]


def _attribute(model: ir.Model, found: dict[str, tuple[float, float]], outputs: set[str]) -> list[TensorError]:
    errors = []
    for node in model.graph:
        for value in node.outputs:
            if value.name not in found:
                continue
            sqnr, cosine = found[value.name]
            before = max((_noise(found[name][0]) for name in _ancestors(node, found)), default=0.0)
            added = _noise(sqnr) - before
            added = math.inf if math.isnan(added) else max(0.0, added)
            is_output, zeros = value.name in outputs, sparsity_of(node)
            errors.append(TensorError(value.name, node.op_type, sqnr, cosine, added, is_output, zeros))
    made = {error.name for error in errors}
    for name in outputs & found.keys() - made:  # an input or a constant that is handed on
        errors.append(TensorError(name, "", *found[name], _noise(found[name][0]), True))
    return sorted(errors, key=lambda error: -error.added)


def _noise(sqnr: float) -> float:
    return math.inf if math.isnan(sqnr) else float(10 ** (-sqnr / 10))


def _ancestors(node: ir.Node, found: dict[str, tuple[float, float]]) -> set[str]:
    """The nearest matched tensors that a node's output is made of."""
    names: set[str] = set()
    seen: set[ir.Node] = {node}
    stack = [node]
    while stack:
        for value in stack.pop().inputs:
            if value is None:
                continue
            producer = value.producer()
            if value.name in found:
                names.add(value.name)
            elif producer is not None and producer not in seen:
                seen.add(producer)
                stack.append(producer)
    return names
