"""The parts of an attention: a projection that is split into heads, and heads that are merged again.

    x [batch, sequence, K]  ->  x W + b  ->  Reshape [batch, sequence, heads, width]  ->  Transpose

Shapes are constants, or put together from sizes of tensors; then each size must be one that is known to be the batch
or the sequence of x, by the tensor it comes from or by the name of its dimension.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from .constants import constant_of, release, scalar
from .rewriting import required

_STANDARD = ("", "ai.onnx")
_DEEPEST = 16
_LAST_TWO = (0, 1, 3, 2)
_UNREAD = "heads are split or merged by a shape that tells too little"
Size = int | tuple[ir.Value, int]
"""A number, or the size of a tensor along an axis."""


@dataclasses.dataclass(frozen=True)
class Heads:
    """How many, and how wide each."""

    count: int
    width: int


@dataclasses.dataclass(frozen=True)
class Projection:
    """factor (x W + b), split into heads.

    Attributes:
        x: [batch, sequence, K].
        product: The MatMul.
        weight: Constant [K, heads * width], or transposed.
        transposed: Whether it is.
        bias: Constant of one axis, None where nothing is added.
        factor: What the result is multiplied by.
        heads: How it is split.
        result: x W + b.
        columns: Those of the product that the heads are, in their order; None where they are all.
    """

    x: ir.Value
    product: ir.Node
    weight: ir.TensorProtocol
    transposed: bool
    bias: ir.TensorProtocol | None
    factor: float
    heads: Heads
    result: ir.Value
    columns: np.ndarray | None = None

    @property
    def K(self) -> int:
        """Length of the reduction."""
        return int(self.weight.shape.numpy()[1 if self.transposed else 0])

    def weight_array(self) -> np.ndarray:
        """float32 [K, heads * width]."""
        array = self.weight.numpy()
        array = array.T if self.transposed else array
        array = np.array(array if self.columns is None else array[:, self.columns])
        release(self.weight)
        return array

    def bias_array(self) -> np.ndarray:
        """float32 [heads * width]."""
        width = int(self.weight.shape.numpy()[0 if self.transposed else 1])
        every = np.zeros(width, np.float32) if self.bias is None else np.broadcast_to(self.bias.numpy(), width)
        return every if self.columns is None else every[self.columns]


def read_projection(value: ir.Value, perm: tuple[int, ...]) -> Projection | str:
    """The projection whose heads a product reads, transposed by `perm`; why it is none otherwise."""
    turned: tuple[int, ...] = (0, 1, 2, 3)
    factor = 1.0
    while True:
        step, value = without_factors(value)
        factor *= step
        node = value.producer()
        if node is None or node.domain not in _STANDARD or not is_private(value):
            return "no projection, or others read it"
        if node.op_type == "Transpose":
            order = tuple(node.attributes.get_ints("perm", (3, 2, 1, 0)))
            value = required(node.inputs[0])
        elif (inner := _turned_as_matrices(node)) is not None:
            order, value = _LAST_TWO, inner
        else:
            break
        if sorted(order) != [0, 1, 2, 3]:
            return "no transposed heads"
        turned = tuple(order[axis] for axis in turned)
    if node.op_type != "Reshape" or turned != perm:
        return "heads are not split by Reshape and Transpose"
    step, projected = without_factors(required(node.inputs[0]))
    return _read_product(node, projected, factor * step)


def _turned_as_matrices(last: ir.Node) -> ir.Value | None:
    """The heads [batch, heads, sequence, width] that a Reshape gives back with the last two axes exchanged.

    So torch's newer exporter turns keys: batch and heads become one axis in between, for a Transpose of three.
    """
    turn = _maker(last, "Transpose") if last.op_type == "Reshape" else None
    first = _maker(turn, "Reshape") if turn is not None else None
    if turn is None or first is None or list(turn.attributes.get_ints("perm", [])) != [0, 2, 1]:
        return None
    heads = required(first.inputs[0])
    flat, whole = _sizes(required(first.inputs[1]), 0), _sizes(required(last.inputs[1]), 0)
    if flat is None or whole is None or len(flat) != 3 or len(whole) != 4 or flat[0] != -1:
        return None
    ends = [*zip(flat[1:], (2, 3), strict=True), *zip(whole, (0, 1, 3, 2), strict=True)]
    return heads if all(_known(size) == known_size(heads, axis) for size, axis in ends) else None


def _maker(node: ir.Node, op_type: str) -> ir.Node | None:
    """The node that makes the first input for this one alone, where it is of this type."""
    value = node.inputs[0]
    maker = value.producer() if value is not None and is_private(value) else None
    return maker if maker is not None and maker.op_type == op_type and maker.domain in _STANDARD else None


def _read_product(split: ir.Node, projected: ir.Value, factor: float) -> Projection | str:
    whole = read_product(projected)
    if isinstance(whole, str):
        return whole
    sums = required(whole.product.outputs[0])
    if not is_private(sums):
        return "others read the product"
    sources = dict.fromkeys((whole.x, sums, projected, required(split.inputs[0])), "bs")
    heads = _split_heads(split, whole.x, whole.heads.width, sources)
    return _UNREAD if heads is None else dataclasses.replace(whole, factor=factor, heads=heads)


def read_product(projected: ir.Value) -> Projection | str:
    """A product with what is added to it, as one head of all columns; why it is none otherwise."""
    bias, sums = None, projected
    node = sums.producer()
    if node is not None and node.op_type == "Add" and node.domain in _STANDARD:
        for index in (0, 1):
            constant = constant_of(node.inputs[index])
            if constant is not None and len(constant.shape) <= 1:
                bias, sums = constant, required(node.inputs[1 - index])
                break
        node = sums.producer()
    if node is None or node.op_type != "MatMul" or node.domain not in _STANDARD:
        return "no product with a constant"
    if sums is not projected and not is_private(sums):
        return "others read the product"
    weight, transposed = _weight(node.inputs[1])
    if weight is None or weight.dtype != ir.DataType.FLOAT or len(weight.shape) != 2:
        return "no product with a constant matrix of float32"
    if bias is not None and bias.dtype != ir.DataType.FLOAT:
        return "a bias of another type than float32"
    columns = int(weight.shape.numpy()[0 if transposed else 1])
    if bias is not None and bias.size not in (1, columns):
        return "a bias that widens the product"
    x = required(node.inputs[0])
    return Projection(x, node, weight, transposed, bias, 1.0, Heads(1, columns), projected)


def merged_heads(context: ir.Value, of: Projection) -> ir.Node | str:
    """The Reshape that makes [batch, sequence, heads * width] of a product [batch, heads, sequence, width]."""
    turn = reader(context)
    if turn is None or turn.op_type != "Transpose" or list(turn.attributes.get_ints("perm", [])) != [0, 2, 1, 3]:
        return "heads are not merged by Transpose and Reshape"
    merge = reader(turn.outputs[0])
    if merge is None or merge.op_type != "Reshape" or merge.inputs[0] is not turn.outputs[0]:
        return "heads are not merged by Transpose and Reshape"
    columns = of.heads.count * of.heads.width
    sources = {context: "bns", turn.outputs[0]: "bs"}
    sizes = _sizes(required(merge.inputs[1]), 0) or _output_sizes(merge)
    free = _free(sizes[:2], of.x, sources) if sizes is not None and len(sizes) == 3 else None
    if sizes is None or free is None:
        return _UNREAD
    last = of.K if sizes[2] == (of.x, 2) else sizes[2]
    return merge if last == columns or (last == -1 and not free) else _UNREAD


def _split_heads(split: ir.Node, x: ir.Value, columns: int, sources: Mapping[ir.Value, str]) -> Heads | None:
    for sizes in (_sizes(required(split.inputs[1]), 0), _output_sizes(split)):
        if sizes is None or len(sizes) != 4:
            continue
        if split.attributes.get_int("allowzero", 0) == 1 and 0 in sizes:
            continue
        free = _free(sizes[:2], x, sources)
        count, width = sizes[2:]
        if free is None or not isinstance(count, int) or not isinstance(width, int):
            continue
        if not free and count == -1 and width > 0:
            count = columns // width
        if not free and width == -1 and count > 0:
            width = columns // count
        if count > 0 and width > 0 and count * width == columns:
            return Heads(count, width)
    return None


def _free(sizes: Sequence[Size], x: ir.Value, sources: Mapping[ir.Value, str]) -> int | None:
    """How many of batch and sequence are left open by -1, where everything else is them; None where it is not."""
    free = 0
    for axis, (size, letter) in enumerate(zip(sizes, "bs", strict=True)):
        if size == -1:
            free += 1
        elif size != 0 and not _is_size(size, axis, letter, x, sources):
            return None
    return free if free <= 1 else None


def _is_size(size: Size, axis: int, letter: str, x: ir.Value, sources: Mapping[ir.Value, str]) -> bool:
    dim = x.shape[axis] if x.shape is not None and len(x.shape) == 3 else None
    if isinstance(size, int):
        return dim == size
    source, at = size
    letters = "bs" if source is x else sources.get(source, "")
    if 0 <= at < len(letters):
        return letters[at] == letter
    other = source.shape[at] if source.shape is not None and -len(source.shape) <= at < len(source.shape) else None
    named = isinstance(other, int) or (isinstance(other, ir.SymbolicDim) and other.value is not None)
    return named and other == dim


def _sizes(value: ir.Value, depth: int) -> list[Size] | None:
    """The elements of a shape."""
    tensor = constant_of(value)
    if tensor is not None:
        few = tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32) and tensor.size <= 8
        return [int(size) for size in tensor.numpy().reshape(-1)] if few else None
    node = value.producer()
    if node is None or node.domain not in _STANDARD or depth > _DEEPEST:
        return None
    if node.op_type == "Shape":
        source = required(node.inputs[0])
        if source.shape is None:
            return None
        axes = range(len(source.shape))
        return [(source, axis) for axis in axes[node.attributes.get_int("start", 0) : _end(node)]]
    parts = [_sizes(part, depth + 1) for part in node.inputs if part is not None]
    if not parts or any(part is None for part in parts):
        return None
    known = [part for part in parts if part is not None]
    if node.op_type == "Concat":
        return [size for part in known for size in part]
    if node.op_type in ("Unsqueeze", "Squeeze", "Identity", "Cast", "Reshape"):
        return known[0]
    return _picked(node, known)


def _known(size: Size) -> Size:
    return size if isinstance(size, int) else known_size(*size)


def known_size(value: ir.Value, axis: int) -> Size:
    """The size of a value along an axis from 0 on, as a number where it can be known."""
    known = value.shape[axis] if value.shape is not None else None
    if isinstance(known, int):
        return known
    node = value.producer()
    if node is not None and node.domain in _STANDARD and node.op_type == "Transpose":
        perm = node.attributes.get_ints("perm", [])
        inner = known_size(required(node.inputs[0]), perm[axis]) if axis < len(perm) else None
        return inner if isinstance(inner, int) else (value, axis)
    if node is not None and node.domain in _STANDARD and node.op_type == "Reshape":
        tensor = constant_of(part) if (part := _part(node.inputs[1], axis)) is not None else None
        size = int(tensor.numpy().reshape(-1)[0]) if tensor is not None and tensor.size == 1 else 0
        return size if size > 0 else (value, axis)
    return value, axis


def _part(shape: ir.Value | None, index: int) -> ir.Value | None:
    """What a Concat of single sizes has at a place."""
    node = shape.producer() if shape is not None else None
    if (
        node is None
        or node.op_type != "Concat"
        or any(value is None or value.shape is None or list(value.shape) != [1] for value in node.inputs)
    ):
        return None
    return node.inputs[index] if index < len(node.inputs) else None


def _picked(node: ir.Node, parts: list[list[Size]]) -> list[Size] | None:
    """Gather and Slice with constant positions."""
    where = [[at for at in part if isinstance(at, int)] for part in parts[1:]]
    if node.op_type == "Gather" and all(-len(parts[0]) <= at < len(parts[0]) for at in where[0]):
        return [parts[0][at] for at in where[0]]
    if node.op_type == "Slice" and len(where) >= 2 and all(len(at) == 1 for at in where) and where[3:] in ([], [[1]]):
        return parts[0][where[0][0] : where[1][0]]
    return None


def _end(node: ir.Node) -> int | None:
    return node.attributes.get_int("end") if "end" in node.attributes else None


def _output_sizes(node: ir.Node) -> list[Size] | None:
    """The shape that inference found, names of dimensions as sizes of the node's own output."""
    shape = node.outputs[0].shape
    if shape is None:
        return None
    return [dim if isinstance(dim, int) else (node.outputs[0], axis) for axis, dim in enumerate(shape)]


def _weight(value: ir.Value | None) -> tuple[ir.TensorProtocol | None, bool]:
    """A constant, perhaps behind a Transpose of its two axes."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Transpose" and list(node.attributes.get_ints("perm", [1, 0])) == [1, 0]:
        return constant_of(node.inputs[0]), True
    return constant_of(value), False


def without_factors(value: ir.Value) -> tuple[float, ir.Value]:
    """The number a value is multiplied by, and the value without."""
    factor = 1.0
    while (node := value.producer()) is not None and is_private(value):
        read = _factor(node)
        if read is None:
            break
        factor, value = factor * read[0], read[1]
    return factor, value


def _factor(node: ir.Node) -> tuple[float, ir.Value] | None:
    if node.op_type == "Identity":
        return 1.0, required(node.inputs[0])
    if node.op_type not in ("Mul", "Div"):
        return None
    for index in (0, 1):
        number = _number(node.inputs[1 - index], 0)
        if number is None or not math.isfinite(number):
            continue
        if node.op_type == "Mul":
            return number, required(node.inputs[index])
        if index == 0 and number != 0:
            return 1 / number, required(node.inputs[0])
    return None


def _number(value: ir.Value | None, depth: int) -> float | None:
    """A number that is constant, or computed of constants and known sizes, as torch has the root of the width."""
    constant = scalar(value)
    node = value.producer() if value is not None else None
    if constant is not None or node is None or node.domain not in _STANDARD or depth > _DEEPEST:
        return constant
    if node.op_type in ("Slice", "Gather"):
        sizes = _sizes(required(value), 0)
        size = _known(sizes[0]) if sizes is not None and len(sizes) == 1 else None
        return float(size) if isinstance(size, int) else None
    parts = [_number(part, depth + 1) for part in node.inputs]
    if not parts or any(part is None for part in parts):
        return None
    return _computed(node.op_type, [part for part in parts if part is not None])


def _computed(op_type: str, parts: list[float]) -> float | None:
    if len(parts) == 1 and op_type in ("Cast", "Identity", "Squeeze", "Unsqueeze"):
        return parts[0]
    if op_type == "Sqrt" and parts[0] >= 0:
        return math.sqrt(parts[0])
    if op_type == "Reciprocal" and parts[0] != 0:
        return 1 / parts[0]
    if op_type == "Mul":
        return parts[0] * parts[1]
    return parts[0] / parts[1] if op_type == "Div" and parts[1] != 0 else None


def reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value, those apart that only ask its shape."""
    nodes = [node for node, _ in value.uses() if not _asks_size(node)]
    return nodes[0] if len(nodes) == 1 and not value.is_graph_output() else None


def _asks_size(node: ir.Node) -> bool:
    """Whether a node is about the shape alone of what it reads, perhaps transposed."""
    if node.op_type != "Transpose" or node.outputs[0].is_graph_output():
        return node.op_type == "Shape"
    readers = [each.op_type for each, _ in node.outputs[0].uses()]
    return bool(readers) and set(readers) == {"Shape"}


def is_private(value: ir.Value) -> bool:
    """Whether one node reads a value, and nobody else."""
    return reader(value) is not None
