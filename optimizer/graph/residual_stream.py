"""The residual stream of a transformer with its norms ahead of the products: who writes it, and who reads it.

    x = table[ids],    x = x + f(norm(x) W + b) V + c,    ..,    logits = norm(x) U

(Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.) The stream is all tensors that sums tie to one
another and that norms read; it is found from the norms on, along sums, forwards and backwards. Names play no part.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from .constants import constant_of
from .matching import RMS_NORM, exact_rank, input_of, is_fixed, is_standard, number
from .projection import known_size
from .rewriting import required
from .written_rms_norms import find_written_rms_norm

_NORMS = ("LayerNormalization", "RMSNormalization", RMS_NORM)
_SIZES = ("Shape", "Size")


@dataclasses.dataclass(frozen=True)
class StreamNorm:
    """A norm over the last axis with a constant scale.

    Attributes:
        node: The node that multiplies by the scale.
        x: What it reads.
        scale: Which input of the node the scale is.
        shift: Which input is added behind it; None for none.
        readers: The nodes that read x.
        centred: Whether it takes the mean off.
    """

    node: ir.Node
    x: ir.Value
    scale: int
    shift: int | None
    readers: tuple[ir.Node, ...]
    centred: bool

    @property
    def y(self) -> ir.Value:
        """What it makes."""
        return self.node.outputs[0]

    @property
    def size(self) -> int:
        """Channels."""
        return int(required(constant_of(self.node.inputs[self.scale])).shape.numpy()[0])


@dataclasses.dataclass(frozen=True)
class Side:
    """A constant that holds the channels of the stream along one of its axes.

    Attributes:
        node: The node that reads it.
        index: Of its input.
        axis: Of the constant.
        norm: Whose result meets it; None for the stream itself.
    """

    node: ir.Node
    index: int
    axis: int
    norm: StreamNorm | None = None


@dataclasses.dataclass
class Stream:
    """A residual stream.

    Attributes:
        size: Channels.
        norms: That read it.
        reads: Weights of products that read it, mostly through a norm.
        writes: Tables, weights of products and vectors, whose sums it is.
        tensors: All that have its channels, what norms make of them, too.
        sums: How many are sums of two others.
        where: The name of the node, or the tensor, for which the channels have to stay what they are.
        why: What it does; "" where there is none.
    """

    size: int
    norms: list[StreamNorm] = dataclasses.field(default_factory=list)
    reads: list[Side] = dataclasses.field(default_factory=list)
    writes: list[Side] = dataclasses.field(default_factory=list)
    tensors: list[ir.Value] = dataclasses.field(default_factory=list)
    sums: int = 0
    where: str = ""
    why: str = ""

    @property
    def centred(self) -> bool:
        """Whether a norm takes the mean off."""
        return any(norm.centred for norm in self.norms)


def find_streams(model: ir.Model) -> list[Stream]:
    """The residual streams of a main graph, in order; those with a `why` cannot get other channels.

    Args:
        model: With its constants marked, and sizes inferred.
    """
    norms = [norm for node in model.graph if (norm := _norm(node)) is not None]
    found, seen = [], set[ir.Value]()
    for norm in norms:
        if norm.x not in seen:
            walk = _Walk(model.graph, norms, norm.size)
            stream = walk.run(norm.x)
            seen |= walk.seen
            if stream.sums and stream.reads:
                found.append(stream)
    return found


def _norm(node: ir.Node) -> StreamNorm | None:
    if is_standard(node, *_NORMS):
        x, scale, shift = (input_of(node, index) for index in range(3))
        rank = exact_rank(x)
        last = node.attributes.get_int("axis", -1) in (-1, None if rank is None else rank - 1)
        alone = not any(value.uses() or value.is_graph_output() for value in node.outputs[1:])
        if x is None or not last or not alone or not _is_vector(scale) or not (shift is None or _is_vector(shift)):
            return None
        centred = node.op_type == "LayerNormalization"
        return StreamNorm(node, x, 1, None if shift is None else 2, (node,), centred)
    written = find_written_rms_norm(node) if is_standard(node, "Sqrt") else None
    if written is None or len(written.readers[0].outputs[0].uses()) > 1:
        return None
    index = list(written.last.inputs).index(written.scale)
    return StreamNorm(written.last, written.x, index, None, written.readers, False)


def _is_vector(value: ir.Value | None) -> bool:
    return is_fixed(value) and len(required(constant_of(value)).shape) == 1


class _Walk:
    """From one tensor of a stream to all that are of it."""

    def __init__(self, graph: ir.Graph, norms: list[StreamNorm], size: int) -> None:
        self._graph, self._stream = graph, Stream(size)
        self._by_reader = {reader: norm for norm in norms for reader in norm.readers}
        self._results = {norm.y for norm in norms}
        self._waiting: list[ir.Value] = []
        self.seen: set[ir.Value] = set()

    def run(self, value: ir.Value) -> Stream:
        """The stream that a tensor is of."""
        self._waiting.append(value)
        while self._waiting:
            each = self._waiting.pop()
            if each not in self.seen:
                self.seen.add(each)
                self._stream.tensors.append(each)
                self._made(each)
                self._read(each, None)
        return self._stream

    def _refuse(self, where: ir.Node | ir.Value, why: str) -> None:
        if not self._stream.why:
            self._stream.where, self._stream.why = where.name or "", why

    def _made(self, value: ir.Value) -> None:
        """What makes a tensor of the stream."""
        node = value.producer()
        if node is None:
            self._refuse(value, "the residual stream is an input or a constant of the graph")
        elif value in self._results:
            self._refuse(node, "what a norm makes is added to the residual stream, so that its scale cannot move on")
        elif self._hands_on(node, value):
            self._waiting.append(_handed_on(node))
        elif is_standard(node, "Add"):
            self._sum(node)
        elif (index := _weight_index(node)) is not None:
            self._write(node, index, 0 if _is_transposed(node) else 1)
            if is_standard(node, "Gemm") and input_of(node, 2) is not None:
                self._write(node, 2, -1)
        else:
            self._refuse(node, f"{node.op_type} makes a part of the residual stream")

    def _sum(self, node: ir.Node) -> None:
        vectors = [index for index in (0, 1) if constant_of(node.inputs[index]) is not None]
        self._stream.sums += not vectors
        self._waiting += [required(node.inputs[index]) for index in (0, 1) if index not in vectors]
        for index in vectors:
            self._write(node, index, -1)

    def _write(self, node: ir.Node, index: int, axis: int) -> None:
        """A constant is written to the stream, or is what products write to it with."""
        if (side := self._side(node, index, axis)) is not None:
            self._stream.writes.append(side)

    def _side(self, node: ir.Node, index: int, axis: int, norm: StreamNorm | None = None) -> Side | None:
        tensor = constant_of(node.inputs[index]) if is_fixed(node.inputs[index]) else None
        shape = () if tensor is None else tuple(tensor.shape.numpy())
        if not shape or shape[axis] != self._stream.size:
            what = "no constant of float32" if tensor is None else f"of shape {list(shape)}"
            self._refuse(node, f"what {node.op_type} reads beside the residual stream is {what}")
            return None
        return Side(node, index, axis % len(shape), norm)

    def _read(self, value: ir.Value, norm: StreamNorm | None) -> None:
        """What reads a tensor of the stream, or what a norm makes of one."""
        whose = "the residual stream" if norm is None else "what a norm makes of the residual stream"
        if value.is_graph_output():
            self._refuse(value, f"{whose} is an output of the graph")
        for node, index in value.uses():
            if node.graph is not self._graph:
                self._refuse(node, f"an inner graph reads {whose}")
            elif is_standard(node, *_SIZES):
                continue
            elif norm is None and node in self._by_reader:
                self._norm(self._by_reader[node])
            elif self._hands_on(node, node.outputs[0]) and value is _handed_on(node):
                self._follow(node.outputs[0], norm)
            elif norm is None and is_standard(node, "Add"):
                self._waiting.append(node.outputs[0])
            elif index == 0 and (weight := _weight_index(node)) == 1 and not node.attributes.get_int("transA", 0):
                side = self._side(node, weight, 1 if _is_transposed(node) else 0, norm)
                if side is not None:
                    self._stream.reads.append(side)
            else:
                self._refuse(node, f"{node.op_type} reads {whose}")

    def _follow(self, value: ir.Value, norm: StreamNorm | None) -> None:
        if norm is None:
            self._waiting.append(value)
        else:
            self._stream.tensors.append(value)
            self._read(value, norm)

    def _norm(self, norm: StreamNorm) -> None:
        if norm in self._stream.norms:
            return
        if norm.size != self._stream.size:
            self._refuse(norm.node, f"a norm has {norm.size} channels, others {self._stream.size}")
        self._stream.norms.append(norm)
        self._stream.tensors += dict.fromkeys(node.outputs[0] for node in (*norm.readers, norm.node))
        self._read(norm.y, norm)

    def _hands_on(self, node: ir.Node, value: ir.Value) -> bool:
        """Whether a node only moves vectors of channels, or multiplies all by one number."""
        size, axis = self._stream.size, exact_rank(value)
        if is_standard(node, "Identity"):
            return True
        if is_standard(node, "Mul", "Div"):
            beside = node.inputs[_beside(node)]
            return number(node.inputs[1 - _beside(node)], beside) is not None
        if not is_standard(node, "Gather", "Reshape", "Slice", "Transpose") or not axis:
            return False
        if is_standard(node, "Transpose"):
            return list(node.attributes.get_ints("perm", [0]))[-1] == axis - 1
        if is_standard(node, "Gather"):
            rank, at = exact_rank(node.inputs[0]), node.attributes.get_int("axis", 0)
            return constant_of(node.inputs[0]) is None and rank is not None and at not in (-1, rank - 1)
        source = required(node.inputs[0])
        rank = exact_rank(source)
        return rank is not None and known_size(source, rank - 1) == known_size(value, axis - 1) == size


def _beside(node: ir.Node) -> int:
    """Which input of Mul or Div is no number."""
    return 1 if is_standard(node, "Mul") and number(node.inputs[0]) is not None else 0


def _handed_on(node: ir.Node) -> ir.Value:
    """The tensor that a node hands on."""
    return required(node.inputs[_beside(node) if is_standard(node, "Mul") else 0])


def _weight_index(node: ir.Node) -> int | None:
    """Where a product, or a Gather, has its matrix."""
    index = 1 if is_standard(node, "MatMul", "Gemm") else 0 if is_standard(node, "Gather") else None
    tensor = constant_of(node.inputs[index]) if index is not None else None
    at_rows = index == 1 or node.attributes.get_int("axis", 0) in (0, -2)
    return index if tensor is not None and len(tensor.shape) == 2 and at_rows else None


def _is_transposed(node: ir.Node) -> bool:
    return is_standard(node, "Gemm") and node.attributes.get_int("transB", 0) == 1
