"""Running a model with inner tensors as outputs.

The copy that runs has the wanted tensors as its only outputs, and only the nodes that they need. Weights are not
copied: the session reads the arrays that the model holds or maps. Being outputs keeps the tensors through the
runtime's own fusions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from ..errors import OnnxpressError
from ..graph.matching import is_standard
from ..model_io.names import names_of
from ..model_io.reading import to_proto
from ..model_io.storage import LEAST_EXTERNAL, embed_attributes, graphs, in_memory
from ..model_io.traverse import inner_graphs
from ..passes.remove_unused import remove_unused
from ..runtime.feeds import Feeds
from ..runtime.session import open_session, session_options, uses_our_ops

_SIZE_SUFFIX, _SEEN_SUFFIX = "/onnxpress_size", "/onnxpress_seen"


_SHARED = frozenset({
    ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT64, ir.DataType.INT32,
    ir.DataType.INT8, ir.DataType.UINT8,
})  # fmt: skip
"""Types whose arrays the runtime takes as they are."""


class ArraySession:
    """A session on a model whose external tensors are arrays, which live as long as it does.

    Args:
        proto: The model.
        arrays: By the tensors' names.
        ours: Whether it has operators of ours.
        config: Entries of the session's configuration.

    Raises:
        OnnxpressError: The runtime refuses the model.
    """

    def __init__(
        self, proto: onnx.ModelProto, arrays: Mapping[str, np.ndarray], *, ours: bool,
        config: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        import onnxruntime as ort

        options = session_options(ours=ours, config=dict(config or {}))
        options.enable_cpu_mem_arena = False  # it would keep the largest outputs, and grow by powers of two
        self._arrays = arrays
        self._weights = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
        if self._weights:
            options.add_external_initializers(list(arrays), self._weights)
        self._session = open_session(proto.SerializeToString(), options, proto.graph.name or "model")

    def run(self, names: Sequence[str | None], feeds: Feeds) -> list[Any]:
        """What outputs of these names hold.

        Raises:
            OnnxpressError: The runtime fails.
        """
        try:
            found: list[Any] = self._session.run(names, feeds)
        except Exception as error:  # ONNX Runtime raises a type for each of its status codes
            raise OnnxpressError(f"ONNX Runtime cannot run it: {str(error).strip().splitlines()[0]}") from error
        return found


class Observer:
    """A session on part of a model that gives the values of some of its tensors."""

    def __init__(self, model: ir.Model, names: Sequence[str], *, sizes: bool = False) -> None:
        """Open the session.

        Args:
            model: The model, which is not changed.
            names: Tensors that nodes of the main graph make, or the last ones of branches of its If nodes; these are
                empty where the other branch is taken.
            sizes: Give how many elements they have instead of their values.

        Raises:
            OnnxpressError: The runtime refuses the model.
        """
        copy = model.clone()  # nodes and values anew, tensors shared
        values = {**_values(copy), **_handed_out(copy, set(names))}
        outputs = [values[name] for name in names]
        copy.graph.outputs[:] = [_size_of(copy, value) for value in outputs] if sizes else outputs
        _prune(copy)
        self._names = [value.name for value in copy.graph.outputs]
        arrays = dict(take_weights(copy))
        # Packed weights are a copy, which one run does not repay.
        config = {"session.disable_prepacking": "1"} if sizes else {}
        self._session = ArraySession(to_proto(copy), arrays, ours=uses_our_ops(model), config=config)

    def run(self, feeds: Feeds) -> list[Any]:
        """What the tensors hold.

        Raises:
            OnnxpressError: The runtime fails.
        """
        return self._session.run(self._names, feeds)


def check_names(model: ir.Model, names: Sequence[str]) -> None:
    """Refuse names of what cannot be observed.

    Raises:
        OnnxpressError: A tensor lies in a graph inside a node, or there is none of this name.
    """
    known = {*in_order(model), *(value.name for value in model.graph.inputs)}
    if not (unknown := [name for name in names if name not in known]):
        return
    inner = {value.name for graph in model.graph.subgraphs() for node in graph for value in node.outputs}
    if nested := [name for name in unknown if name in inner]:
        raise OnnxpressError(f"tensors of graphs inside nodes cannot be observed: {', '.join(nested)}")
    raise OnnxpressError(f"the model has no tensor named {', '.join(unknown)}")


def in_order(model: ir.Model) -> list[str]:
    """Names of what nodes of the main graph make, and of the last values of branches, in the order of the graph."""
    found = []
    for node in model.graph:
        found += [value.name for value in (*node.outputs, *_last(node)) if value.name]
    return found


def _last(node: ir.Node) -> dict[ir.Value, ir.Graph]:
    """What the branches of an If make themselves and hand out, with the branch."""
    branches = inner_graphs(node) if is_standard(node, "If") else ()
    return {
        value: branch
        for branch in branches
        for value in branch.outputs
        if (maker := value.producer()) is not None and maker.graph is branch
    }


def _handed_out(model: ir.Model, names: Collection[str]) -> dict[str, ir.Value]:
    """New results of If nodes, which are the last values of branches; of the other branch they are empty."""
    found: dict[str, ir.Value] = {}
    for node in model.graph:
        for value, branch in _last(node).items():
            if value.name not in names:
                continue
            node.resize_outputs(len(node.outputs) + 1)
            found[value.name or ""] = result = node.outputs[-1]
            result.name = names_of(model.graph).value(f"{value.name}{_SEEN_SUFFIX}")
            result.type = value.type
            for each in inner_graphs(node):
                empty = {"value": ir.tensor(np.zeros(0, (value.dtype or ir.DataType.FLOAT).numpy()))}
                end = ir.node("Identity", [value]) if each is branch else ir.node("Constant", [], attributes=empty)
                end.outputs[0].name, end.outputs[0].type = names_of(model.graph).value(result.name), value.type
                each.append(end)
                each.outputs.append(end.outputs[0])
    return found


def _values(model: ir.Model) -> dict[str, ir.Value]:
    return {value.name: value for node in model.graph for value in node.outputs if value.name}


def _size_of(model: ir.Model, value: ir.Value) -> ir.Value:
    node = ir.node("Size", [value])
    size = node.outputs[0]
    size.name = names_of(model.graph).value(f"{value.name}{_SIZE_SUFFIX}")
    size.type, size.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([])
    model.graph.append(node)
    return size


def _prune(model: ir.Model) -> None:
    import onnx_ir.passes.common as common

    remove_unused(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]


class Weights(Mapping[str, np.ndarray]):
    """Arrays by name, of which those that are computed are computed anew each time."""

    def __init__(self) -> None:
        self._held: dict[str, np.ndarray | ir.LazyTensor] = {}

    def put(self, name: str, tensor: ir.TensorProtocol) -> None:
        """Add the array of a tensor."""
        self._held[name] = tensor if isinstance(tensor, ir.LazyTensor) else np.ascontiguousarray(tensor.numpy())

    def __getitem__(self, name: str) -> np.ndarray:
        held = self._held[name]
        return np.ascontiguousarray(held.numpy()) if isinstance(held, ir.LazyTensor) else held

    def __contains__(self, name: object) -> bool:
        return name in self._held  # without computing it

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


def take_weights(model: ir.Model) -> Weights:
    """Larger initializers of the main graph, which become references that the session resolves."""
    _embed(model)
    taken = Weights()
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype not in _SHARED:
            continue
        if tensor.nbytes < LEAST_EXTERNAL:
            value.const_value = in_memory(tensor)
            continue
        taken.put(name, tensor)
        value.const_value = ir.ExternalTensor(
            "weights", None, None, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
        )
    return taken


def _embed(model: ir.Model) -> None:
    """External data that no session can be handed moves into the copy: that of inner graphs and of rare types."""
    embed_attributes(model)
    for graph in graphs(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and (graph is not model.graph or tensor.dtype not in _SHARED):
                value.const_value = in_memory(tensor)
