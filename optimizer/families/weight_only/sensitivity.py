"""What the outputs of a model lose when some of its weights change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from ...calibration.inputs import inputs_of
from ...calibration.observe import ArraySession, take_weights
from ...calibration.windows import MASK, predicts_tokens, reads_tokens
from ...errors import OnnxpressError
from ...evaluation.language import logits_of
from ...graph.constants import constant_of
from ...graph.rewriting import required
from ...model_io.names import names_of
from ...model_io.reading import to_proto
from ...passes.remove_unused import remove_unused
from ...runtime.feeds import Feeds, is_float
from ...runtime.session import uses_our_ops

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


_BATCHES = 32
"""Of what is no text for a language model."""
_TOKENS = 128
"""Of a language model's window: each weight of it is a run, and which weight is worth most is seen in few tokens."""


@dataclasses.dataclass(frozen=True)
class Exchangeable:
    """A float model whose products take their weights as inputs, so that any of them can be another.

    Attributes:
        proto: The model, serialized.
        arrays: Its other constants, by name.
        inputs: Those that are weights, by name of the node.
        weights: Of the float model, by name of the input.
        names: Of the outputs that are measured.
        batches: On which.
        logits: Whether these are predictions of tokens.
        ours: Whether it has operators of ours.
    """

    proto: bytes
    arrays: Mapping[str, Array]
    inputs: Mapping[str, str]
    weights: Mapping[str, Array]
    names: Sequence[str | None]
    batches: Sequence[dict[str, Any]]
    logits: bool
    ours: bool


def with_exchangeable(model: ir.Model, data: Iterable[Feeds], nodes: Collection[ir.Node]) -> Exchangeable:
    """Make weights inputs.

    Args:
        model: The float model, with its constants marked; it is not changed.
        data: Of which the first batches are read; of a language model the first tokens of the first one.
        nodes: Of its main graph, that may get another second input.

    Raises:
        OnnxpressError: There is no data.
    """
    logits = predicts_tokens(model)
    batches: list[dict[str, Any]] = [dict(batch) for batch in islice(data, 1 if logits else _BATCHES)]
    if not batches:
        raise OnnxpressError("there is no data to measure by")
    if logits:
        batches[0] |= _few_tokens(model, batches[0])
    copy = model.clone()
    by_name = {node.name: node for node in copy.graph}
    inputs: dict[str, str] = {}
    weights: dict[str, Array] = {}
    for node in nodes:
        weight = required(constant_of(required(node.inputs[1])))
        name = names_of(copy.graph).value("weight")
        value = ir.Value(name=name, type=ir.TensorType(weight.dtype), shape=ir.Shape(weight.shape.numpy()))
        by_name[node.name].replace_input_with(1, value)
        copy.graph.inputs.append(value)
        inputs[node.name or ""] = name
        weights[name] = np.ascontiguousarray(weight.numpy())
    outputs = [value for value in copy.graph.outputs if value.dtype is None or is_float(value.dtype.numpy())]
    if logits:
        outputs = [value for value in outputs if value.name == logits_of(model)]
    copy.graph.outputs[:] = outputs
    remove_unused(copy)
    arrays = dict(take_weights(copy))
    names = [value.name for value in copy.graph.outputs]
    proto = to_proto(copy).SerializeToString()
    return Exchangeable(proto, arrays, inputs, weights, names, batches, logits, uses_our_ops(model))


class Sensitivity:
    """A session of a model whose weights can be others.

    Raises:
        OnnxpressError: ONNX Runtime cannot run the model.
    """

    def __init__(self, model: Exchangeable) -> None:
        self._model = model
        # Most weights are inputs, of which nothing can be packed, and the others are read some hundred times at most.
        config = {"session.disable_prepacking": "1"}
        proto = onnx.load_from_string(model.proto)
        self._session = ArraySession(proto, model.arrays, ours=model.ours, config=config)
        self._losses = [self._measures(batch) for batch in model.batches]

    def of(self, changed: Mapping[str, Array]) -> float:
        """What is lost when nodes read other weights.

        Args:
            changed: Their second inputs, by name of the node.

        Returns:
            Of a language model the mean Kullback-Leibler divergence of its predictions, in nats per token; of others
            the squared error of the outputs, of their squares.

        Raises:
            OnnxpressError: ONNX Runtime cannot run the model.
        """
        model = self._model
        weights = {**model.weights, **{model.inputs[name]: weight for name, weight in changed.items()}}
        found = [self._session.run(model.names, batch | weights) for batch in model.batches]
        losses = [
            loss(each)
            for measures, outputs in zip(self._losses, found, strict=True)
            for loss, each in zip(measures, outputs, strict=True)
        ]
        return float(np.mean(losses))

    def _measures(self, batch: dict[str, Any]) -> list[Callable[[Any], float]]:
        """What measures the outputs of a batch by those of the float model."""
        wanted = self._session.run(self._model.names, {**batch, **self._model.weights})
        if self._model.logits:
            return [_divergence(each) for each in wanted]
        return [_error(each, batch.get(MASK)) for each in wanted]


def _few_tokens(model: ir.Model, batch: Feeds) -> Feeds:
    entries = {entry.name: entry for entry in inputs_of(model)}
    return {name: value[:, :_TOKENS] for name, value in batch.items() if reads_tokens(entries[name])}


def _divergence(wanted: Array) -> Callable[[Any], float]:
    """How far logits [..., vocabulary] are from these, as `evaluation.likelihood` has it, with these looked at once."""
    logs = _log_probabilities(wanted)
    p = np.exp(logs)

    def measure(found: Array) -> float:
        nats = np.einsum("tv,tv->", p, logs - _log_probabilities(found), dtype=np.float64)
        return float(nats / max(len(logs), 1))

    return measure


def _log_probabilities(logits: Array) -> Floats:
    x = logits.reshape(-1, logits.shape[-1]).astype(np.float32)
    x -= x.max(axis=1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=1, dtype=np.float64, keepdims=True)).astype(np.float32)
    return x


def _error(wanted: Any, mask: Any) -> Callable[[Any], float]:
    """The squared error, of the squares, but for tokens that are padding; 0 of what is no tensor."""
    if not isinstance(wanted, np.ndarray) or not wanted.size:
        return lambda _found: 0.0
    by_token = isinstance(mask, np.ndarray) and wanted.ndim > 2 and wanted.shape[:2] == mask.shape
    counted = mask != 0 if by_token else np.s_[:]
    a = wanted[counted].astype(np.float64) if wanted.ndim else wanted.astype(np.float64)
    energy = max(float(np.square(a).sum()), 1e-30)
    return lambda found: float(np.square(a - (found[counted] if found.ndim else found)).sum() / energy)
