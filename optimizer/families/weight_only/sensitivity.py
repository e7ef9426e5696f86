"""What the outputs of a model lose when some of its weights change."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...calibration.inputs import inputs_of
from ...calibration.observe import ArraySession, take_weights
from ...calibration.windows import predicts_tokens, reads_tokens
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


_TOKENS = 128
"""Of a language model's window: each weight of it is a run, and which weight is worth most is seen in few tokens."""


class Sensitivity:
    """A session of a float model whose products take their weights as inputs, so that any of them can be another.

    Args:
        model: The float model, with its constants marked; it is not changed.
        data: Of which the first batch is read, of text its first tokens.
        nodes: Of its main graph, that may get another second input.

    Raises:
        OnnxpressError: ONNX Runtime cannot run the model, or there is no data.
    """

    def __init__(self, model: ir.Model, data: Iterable[Feeds], nodes: Collection[ir.Node]) -> None:
        batch = next(islice(iter(data), 1), None)
        if batch is None:
            raise OnnxpressError("there is no data to measure by")
        self._logits = predicts_tokens(model)
        copy = model.clone()
        by_name = {node.name: node for node in copy.graph}
        self._inputs: dict[str, str] = {}
        self._feeds: dict[str, Any] = {**batch, **(_few_tokens(model, batch) if self._logits else {})}
        for node in nodes:
            weight = required(constant_of(required(node.inputs[1])))
            name = names_of(copy.graph).value("weight")
            value = ir.Value(name=name, type=ir.TensorType(weight.dtype), shape=ir.Shape(weight.shape.numpy()))
            by_name[node.name].replace_input_with(1, value)
            copy.graph.inputs.append(value)
            self._inputs[node.name or ""] = name
            self._feeds[name] = np.ascontiguousarray(weight.numpy())
        outputs = [value for value in copy.graph.outputs if value.dtype is None or is_float(value.dtype.numpy())]
        if self._logits:
            outputs = [value for value in outputs if value.name == logits_of(model)]
        copy.graph.outputs[:] = outputs
        remove_unused(copy)
        arrays = take_weights(copy)
        # Most weights are inputs, of which nothing can be packed, and the others are read some hundred times at most.
        config = {"session.disable_prepacking": "1"}
        self._session = ArraySession(to_proto(copy), arrays, ours=uses_our_ops(model), config=config)
        self._names = [value.name for value in copy.graph.outputs]
        wanted = self._session.run(self._names, self._feeds)
        self._losses = [(_divergence if self._logits else _error)(each) for each in wanted]

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
        weights = {self._inputs[name]: weight for name, weight in changed.items()}
        found = self._session.run(self._names, {**self._feeds, **weights})
        return float(np.mean([loss(each) for loss, each in zip(self._losses, found, strict=True)]))


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


def _error(wanted: Any) -> Callable[[Any], float]:
    """The squared error, of the squares; 0 of what is no tensor."""
    if not isinstance(wanted, np.ndarray) or not wanted.size:
        return lambda _found: 0.0
    a = wanted.astype(np.float64)
    energy = max(float(np.square(a).sum()), 1e-30)
    return lambda found: float(np.square(a - found).sum() / energy)
