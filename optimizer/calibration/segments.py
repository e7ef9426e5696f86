"""Two paths through a model, segment by segment: as it is, and with the weights that have been rounded so far.

The nodes of the main graph, in their order, are cut before some of them. What those before a cut have made and those
behind it read is kept, batch by batch, so that all segments together cost one run of the model on each path, however
many cuts there are. Tensors that no changed weight reaches are kept once for both paths.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from ..errors import OnnxpressError
from ..graph.constants import is_constant
from ..model_io.reading import to_proto
from ..runtime.feeds import Feeds
from ..runtime.pages import drop_pages
from ..runtime.session import uses_our_ops
from .kept import Kept
from .observe import ArraySession, take_weights
from .windows import MASK

Array = npt.NDArray[Any]

MEMORY = 1_000_000_000
"""Bytes of tensors between segments that are held in memory; the others wait in files."""


class Segments:
    """A run of a model on some batches, as far as some node.

    Args:
        model: The float model, sorted, with its constants marked; it is not changed.
        data: Batches of its inputs, gone through once.
        memory: Bytes of tensors between segments that stay in memory.
        outputs: Keep the tensors that are outputs of the graph, too.

    Raises:
        OnnxpressError: ONNX Runtime refuses the model.
    """

    def __init__(
        self, model: ir.Model, data: Iterable[Feeds], *, memory: int = MEMORY, outputs: bool = False
    ) -> None:  # fmt: skip
        copy = model.clone()
        tensors = [value.const_value for value in copy.graph.initializers.values()]
        constants = {value.name or "" for value in _values(model) if is_constant(value)}
        self._weights = take_weights(copy)
        self._maps = [tensor.raw for tensor in tensors if isinstance(tensor, ir.ExternalTensor) and tensor.raw]
        kept = [value.name or "" for value in model.graph.outputs if isinstance(value.type, ir.TensorType)]
        self._parts = _Parts(to_proto(copy), constants, kept if outputs else [], ours=uses_our_ops(model))
        self._position = 0
        self._changed: dict[str, Array] = {}
        self._moved: set[str] = set()
        self._float, self._rounded = Kept(memory // 2), Kept(memory // 2)
        self._masks: list[Array | None] = []
        for batch, feeds in enumerate(data):
            mask = feeds.get(MASK)
            self._masks.append(mask if isinstance(mask, np.ndarray) and mask.ndim == 2 else None)
            for name, value in {**self._parts.defaults(self._weights), **feeds}.items():
                self._float.put(batch, name, value)
        self.batches = self._float.batches

    def __enter__(self) -> Segments:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._float.close()
        self._rounded.close()

    def position(self, node: str) -> int:
        """Where a node of the main graph comes in its order."""
        return self._parts.position(node)

    def advance(self, node: str) -> None:
        """Run both paths up to a node, which may not lie before the one of the last time.

        Raises:
            OnnxpressError: ONNX Runtime cannot run the nodes between, or what they make is no tensor.
        """
        self._advance(self.position(node))

    def advance_over(self, node: str) -> None:
        """Run both paths up to a node, and the node."""
        self._advance(self.position(node) + 1)

    def finish(self) -> list[str]:
        """Run both paths to the end; the names of the outputs that are kept."""
        self._advance(len(self._parts.nodes))
        return self._parts.outputs

    def _advance(self, end: int) -> None:
        if end <= self._position:
            return
        segment = self._parts.segment(self._position, end)
        reached = segment.reached(self._moved, self._changed.keys())
        self._run(segment, self._float, {}, set(segment.outputs))
        if reached:
            self._run(segment, self._rounded, self._changed, reached)
        for pages in self._maps:
            drop_pages(pages)
        self._moved |= reached
        self._position = end
        live = self._parts.live(end)
        self._moved &= live
        self._float.keep(live)
        self._rounded.keep(live)
        self._changed = {name: array for name, array in self._changed.items() if self.position(name) >= end}

    def pair(self, name: str, batch: int) -> tuple[Array, Array]:
        """A tensor on the path of the float model and on that of the rounded weights; the same one where it is."""
        here = self._float.get(batch, name)
        return here, self._rounded.get(batch, name) if name in self._moved else here

    def mask(self, batch: int) -> Array | None:
        """[batch, tokens], 0 where a token of the batch is padding; None where no input says so."""
        return self._masks[batch]

    def change(self, node: str, weight: Array) -> None:
        """Give the node another second input on the path of rounded weights, before it has run."""
        self._changed[node] = weight

    def _run(self, segment: _Segment, kept: Kept, changed: Mapping[str, Array], wanted: set[str]) -> None:
        outputs = [name for name in segment.outputs if name in wanted]
        if not outputs:
            return
        proto, arrays = segment.model(self._weights, changed, outputs, self._float.types)
        session = ArraySession(proto, arrays, ours=self._parts.ours)
        inputs = [value.name for value in proto.graph.input]
        for batch in range(self.batches):
            feeds = {name: self._value(kept, batch, name) for name in inputs}
            values = session.run(outputs, feeds)
            for name, value in zip(outputs, values, strict=True):
                if not isinstance(value, np.ndarray):
                    raise OnnxpressError(f"'{name}' is no tensor; a run cannot be cut there")
                kept.put(batch, name, value)

    def _value(self, kept: Kept, batch: int, name: str) -> Array:
        return kept.get(batch, name) if name in self._moved or kept is self._float else self._float.get(batch, name)


class _Parts:
    """The nodes of a model in order, and which values each makes and reads.

    Constants are computed anew by each segment that reads them.
    """

    def __init__(self, proto: onnx.ModelProto, constants: set[str], outputs: list[str], *, ours: bool) -> None:
        self.proto, self.ours = proto, ours
        graph = proto.graph
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.fixed = constants | (self.initializers.keys() - {value.name for value in graph.input})
        self.makers = {name: node for node in graph.node for name in node.output if name}
        self.nodes = [node for node in graph.node if not set(filter(None, node.output)) <= self.fixed]
        self._positions = {node.name: index for index, node in enumerate(self.nodes)}
        self.reads = [set(_read(node)) for node in self.nodes]
        self._last_read = {name: index for index, names in enumerate(self.reads) for name in names}
        self.outputs = [name for name in outputs if name in self.makers and name not in self.fixed]
        self._last_read |= dict.fromkeys(self.outputs, len(self.nodes))

    def position(self, node: str) -> int:
        return self._positions[node]

    def defaults(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """Of inputs that have one; large ones are among the weights."""
        inputs = {value.name for value in self.proto.graph.input}
        return {
            name: weights[name] if name in weights else onnx.numpy_helper.to_array(tensor)
            for name, tensor in self.initializers.items()
            if name in inputs
        }

    def live(self, position: int) -> set[str]:
        """What the nodes from there on read."""
        return {name for name, last in self._last_read.items() if last >= position and name not in self.fixed}

    def segment(self, begin: int, end: int) -> _Segment:
        return _Segment(self, begin, end)


class _Segment:
    """Some nodes that follow each other.

    Attributes:
        outputs: What they make for those behind them.
    """

    def __init__(self, parts: _Parts, begin: int, end: int) -> None:
        self._parts = parts
        self._nodes, self._reads = parts.nodes[begin:end], parts.reads[begin:end]
        live = parts.live(end)
        self.outputs = [name for node in self._nodes for name in node.output if name in live]

    def reached(self, moved: set[str], changed: Iterable[str]) -> set[str]:
        """Outputs that depend on values that differ between the paths, or on nodes that do."""
        names, nodes = set(moved), set(changed)
        for node, reads in zip(self._nodes, self._reads, strict=True):
            if node.name in nodes or not reads.isdisjoint(names):
                names |= set(filter(None, node.output))
        return names & set(self.outputs)

    def model(
        self, weights: Mapping[str, Array], changed: Mapping[str, Array], outputs: list[str],
        types: Mapping[str, np.dtype[Any]],
    ) -> tuple[onnx.ModelProto, dict[str, Array]]:  # fmt: skip
        """What computes the outputs, and the arrays that its external tensors stand for."""
        parts, arrays = self._parts, {}
        needed, wanted = [], set(outputs)
        for node, reads in zip(reversed(self._nodes), reversed(self._reads), strict=True):
            if not wanted.isdisjoint(node.output):
                wanted |= reads
                needed.append(node)
        made = {name for node in needed for name in node.output}
        proto = onnx.ModelProto()
        proto.CopyFrom(_without_graph(parts.proto))
        graph = proto.graph
        graph.name = parts.proto.graph.name or "segment"
        constant = [*_constant_nodes(parts, wanted & parts.fixed)]
        for node in (*constant, *reversed(needed)):
            copy = graph.node.add()
            copy.CopyFrom(node)
            if node.name in changed and node in needed:
                copy.input[1] = name = f"{node.output[0]}/onnxpress_rounded"
                arrays[name] = changed[node.name]
                graph.initializer.append(_external(name, changed[node.name]))
        read = {name for node in graph.node for name in _read(node)}
        for name in sorted(read & parts.initializers.keys() & parts.fixed):
            graph.initializer.add().CopyFrom(parts.initializers[name])
            if name in weights:
                arrays[name] = weights[name]
        for name in sorted(wanted - made - parts.fixed):
            kind = onnx.helper.np_dtype_to_tensor_dtype(types[name])
            graph.input.append(onnx.helper.make_tensor_value_info(name, kind, None))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        return proto, arrays


def _constant_nodes(parts: _Parts, names: set[str]) -> Iterator[onnx.NodeProto]:
    """Nodes that compute constants, in order."""
    needed, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        maker = parts.makers.get(name)
        if maker is not None and maker.output[0] not in needed:
            needed.add(maker.output[0])
            waiting += _read(maker)
    return (node for node in parts.proto.graph.node if node.output and node.output[0] in needed)


def _without_graph(proto: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)


def _external(name: str, array: Array) -> onnx.TensorProto:
    tensor = onnx.TensorProto(
        name=name, dims=array.shape, data_type=onnx.helper.np_dtype_to_tensor_dtype(array.dtype),
        data_location=onnx.TensorProto.EXTERNAL,
    )  # fmt: skip
    tensor.external_data.add(key="location", value="weights")
    return tensor


def _read(node: onnx.NodeProto) -> list[str]:
    """What a node reads, by the graphs inside it as well."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
            own = {value.name for value in (*graph.input, *graph.initializer)}
            for inner in graph.node:
                names += [name for name in _read(inner) if name not in own]
                own |= set(inner.output)
            names += [value.name for value in graph.output if value.name not in own]
    return names


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for node in model.graph:
        yield from node.outputs
