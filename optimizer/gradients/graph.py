"""An ONNX graph as a function of PyTorch.

Its nodes are run one after the other, see `operators`. They are cut into segments where few tensors are alive, and
where gradients are asked for each segment keeps what it reads alone and is run once more on the way back (activation
checkpointing: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174). Weights that are
trained are given as functions, so that what they make is in memory for one segment at a time.

Floats of 16 bits are computed in float32. Shapes and other whole numbers are tensors like all others, which no gradient
reaches.
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.utils.checkpoint import checkpoint

from ..errors import OnnxpressError
from ..graph.constants import constant_of, release
from ..graph.matching import is_standard, opset_of
from ..graph.rewriting import required
from ..model_io.traverse import inner_graphs
from ..runtime.feeds import Feeds
from .operators import OPERATORS, Operator, Place

Weights = Mapping[str, Callable[[], torch.Tensor]]
"""By name of a node what makes its second input."""

_MICROSOFT = frozenset({"Gelu", "QuickGelu"})
"""Operators of the domain com.microsoft that are known."""
_PRODUCTS = 8
"""Trained products of a segment: one layer of a transformer has four to seven."""


class TorchGraph:
    """A function of a model's inputs.

    Args:
        model: Sorted, with its constants marked; it is not changed, and its weights are not copied.
        outputs: Names of what the function gives.
        trained: Names of nodes whose second input may be given, see `run`.

    Raises:
        OnnxpressError: The graph has operators that are not known here, or branches and loops.
    """

    def __init__(self, model: ir.Model, outputs: Sequence[str], trained: Collection[str] = ()) -> None:
        by_name = {value.name: value for value in model.graph.outputs}
        self._outputs = [by_name[name] for name in outputs]
        self._constants: dict[ir.Value, torch.Tensor] = {}
        nodes = _needed(model, self._outputs)
        _check(nodes)
        opset = opset_of(model)
        steps = [_Step(Place(node, opset), OPERATORS[node.op_type], node.name in trained) for node in nodes]
        live = _live_values(steps, self._outputs)
        ends = [*_cuts(steps, list(map(len, live))), len(steps)]
        begins = [0, *ends[:-1]]
        self._segments = [
            _Segment(steps[begin:end], live[begin], live[end]) for begin, end in zip(begins, ends, strict=True)
        ]

    def run(self, feeds: Feeds, weights: Weights | None = None) -> list[torch.Tensor]:
        """The outputs for some inputs.

        Args:
            feeds: By name; defaults count where one is missing.
            weights: What makes the second inputs of nodes that are trained, in the shape that these read.

        Raises:
            OnnxpressError: A node cannot be computed.
        """
        values = self.begin(feeds)
        for segment in range(self.segments):
            values = self.advance(segment, values, weights or {})
        by_value = dict(zip(self._segments[-1].makes, values, strict=True))
        return [by_value[value] if value in by_value else self._constant(value) for value in self._outputs]

    @property
    def segments(self) -> int:
        """How many there are."""
        return len(self._segments)

    def trained_in(self, segment: int) -> list[str]:
        """Names of the nodes of a segment whose second input may be given."""
        return [step.place.node.name or "" for step in self._segments[segment].steps if step.is_trained]

    def begin(self, feeds: Feeds) -> tuple[torch.Tensor, ...]:
        """What is alive before the first segment."""
        values = []
        for value in self._segments[0].reads:
            array = feeds.get(value.name or "")
            if array is None and value.const_value is not None:
                array = value.const_value.numpy()
            if array is None:
                raise OnnxpressError(f"'{value.name}' is neither given nor a constant")
            values.append(tensor_of(array))
        return tuple(values)

    def advance(self, segment: int, values: Sequence[torch.Tensor], weights: Weights) -> tuple[torch.Tensor, ...]:
        """What is alive behind a segment, by what is before it."""
        return self._compute(self._segments[segment], list(values), weights)

    def _compute(self, segment: _Segment, reads: list[torch.Tensor], weights: Weights) -> tuple[torch.Tensor, ...]:
        def compute(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            values = dict(zip(segment.reads, tensors, strict=True))
            for step, dead in zip(segment.steps, segment.dead, strict=True):
                self._run(step, values, weights)
                for value in dead:
                    del values[value]
            return tuple(values[value] for value in segment.makes)

        if not torch.is_grad_enabled():
            return compute(*reads)
        made: tuple[torch.Tensor, ...] = checkpoint(compute, *reads, use_reentrant=False, preserve_rng_state=False)
        return made

    def _run(self, step: _Step, values: dict[ir.Value, torch.Tensor], weights: Weights) -> None:
        node = step.place.node
        own = weights.get(node.name or "") if step.is_trained else None
        inputs: list[torch.Tensor | None] = []
        for index, value in enumerate(node.inputs):
            if index == 1 and step.is_trained:  # which is read as it is by the float model alone
                inputs.append(tensor_of(required(constant_of(value)).numpy()) if own is None else own())
            elif value is None:
                inputs.append(None)
            else:
                inputs.append(values[value] if value in values else self._constant(value))
        try:
            found = step.operator(step.place, inputs)
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, KeyError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise OnnxpressError(f"node '{node.name}' ({node.op_type}) has no gradient here: {reason}") from error
        del inputs
        if step.is_trained and own is None:
            release(required(constant_of(node.inputs[1])))
        outputs = found if isinstance(found, tuple | list) else (found,)
        values.update(zip(node.outputs, outputs, strict=False))

    def _constant(self, value: ir.Value) -> torch.Tensor:
        if value not in self._constants:
            tensor = constant_of(value)
            if tensor is None:
                raise OnnxpressError(f"'{value.name}' is neither given nor a constant")
            self._constants[value] = tensor_of(tensor.numpy())
        return self._constants[value]


@dataclasses.dataclass(frozen=True)
class _Step:
    """A node, and what computes it."""

    place: Place
    operator: Operator
    is_trained: bool

    @property
    def reads(self) -> Iterator[ir.Value]:
        """What it reads that is no constant."""
        return (value for value in self.place.node.inputs if value is not None and _is_variable(value))


class _Segment:
    """Nodes that follow each other.

    Attributes:
        reads: What is alive before them.
        makes: What is alive behind them.
        dead: Behind each of them, what nobody reads any more.
    """

    def __init__(self, steps: list[_Step], reads: list[ir.Value], makes: list[ir.Value]) -> None:
        self.steps, self.reads, self.makes = steps, reads, makes
        last: dict[ir.Value, int] = dict.fromkeys(reads, 0)
        for index, step in enumerate(steps):
            last |= dict.fromkeys(step.place.node.outputs, index)
            last |= dict.fromkeys(step.reads, index)
        self.dead: list[list[ir.Value]] = [[] for _ in steps]
        kept, before = set(makes), set(reads)
        for value, index in last.items():
            # An output that nobody reads may be one that the operator does not give.
            if value not in kept and (value in before or next(iter(value.uses()), None) is not None):
                self.dead[index].append(value)


def tensor_of(array: Any) -> torch.Tensor:
    """A tensor on the memory of an array, of floats of 16 bits a copy in float32."""
    array = np.asarray(array)
    if array.dtype.kind not in "biu" and array.dtype not in (np.float32, np.float64):
        return torch.from_numpy(array.astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of memory that may not be written to, which nobody does
        return torch.from_numpy(array if array.flags.c_contiguous else np.ascontiguousarray(array))


def _is_variable(value: ir.Value) -> bool:
    return value.is_graph_input() or constant_of(value) is None


def _needed(model: ir.Model, outputs: Sequence[ir.Value]) -> list[ir.Node]:
    """The nodes that compute them, in order, but for those that compute constants."""
    wanted, needed = set(outputs), []
    for node in reversed(list(model.graph)):
        if any(value in wanted and _is_variable(value) for value in node.outputs):
            needed.append(node)
            wanted.update(value for value in node.inputs if value is not None)
    return needed[::-1]


def _check(nodes: Sequence[ir.Node]) -> None:
    """Refuse what cannot be computed."""
    inner = sorted({node.op_type for node in nodes if next(inner_graphs(node), None) is not None})
    if inner:
        raise OnnxpressError(f"the graph branches or loops ({', '.join(inner)}), through which no gradient goes here")
    unknown = sorted({_name(node) for node in nodes if not _is_known(node)})
    if unknown:
        raise OnnxpressError(f"no gradients are known of {', '.join(unknown)}")


def _is_known(node: ir.Node) -> bool:
    if node.domain == "com.microsoft":
        return node.op_type in _MICROSOFT
    return is_standard(node, *OPERATORS)


def _name(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _live_values(steps: Sequence[_Step], outputs: Sequence[ir.Value]) -> list[list[ir.Value]]:
    """What is alive before each step and behind the last: made before, and read from there on or given at the end."""
    last = {value: index for index, step in enumerate(steps) for value in step.reads}
    last |= {value: len(steps) for value in outputs if _is_variable(value)}
    alive = {value: None for value in last if value.producer() is None}
    found = [list(alive)]
    for index, step in enumerate(steps):
        alive |= {value: None for value in step.place.node.outputs if value in last}
        alive = {value: None for value in alive if last[value] > index}
        found.append(list(alive))
    return found


def _cuts(steps: Sequence[_Step], alive: Sequence[int]) -> list[int]:
    """Where segments end: every some products, where the fewest tensors are alive."""
    products = [index for index, step in enumerate(steps) if step.is_trained][::_PRODUCTS]
    return [min(range(begin + 1, end + 1), key=alive.__getitem__) for begin, end in itertools.pairwise(products)]
