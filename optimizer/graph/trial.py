"""What values of a graph are, tried out: a part of it is run by ONNX Runtime for chosen sizes and inputs.

Exporters spell the same moves of heads, rotations and masks in many ways. What a few nodes do that only move, scale
and add numbers is told by what they make of numbers that are chosen so that each can be recognised, however the nodes
are written. Shapes that such nodes are given are followed back to the sizes of tensors, without computing these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..errors import OnnxpressError
from .constants import constant_of, copied, copy_of, is_computation, stored_constant
from .matching import is_standard

Array = npt.NDArray[Any]
_MOST = 1 << 24
"""Elements of a constant that a part may hold, such as a table of angles; weights are larger, and no part of any."""
_MOST_NODES = 300
_KEEP_SIZES = (
    "BiasGelu", "Cast", "DynamicQuantizeLinear", "Erf", "FastGelu", "Gelu", "Identity", "IsNaN", "LayerNormalization",
    "Neg", "QuickGelu", "RMSNormalization", "Reciprocal", "Relu", "RotaryEmbedding", "Sigmoid",
    "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "Softmax", "Sqrt",
    "Tanh",
)  # fmt: skip
_CODES = "DynamicQuantizeLinear"
_MOVES = ("Concat", "Expand", "Slice", "Squeeze", "Tile", "Unsqueeze")
_BROADCAST = ("Add", "Div", "Mul", "Pow", "Sub", "Sum", "Where")
_PRODUCTS = (
    "DynamicQuantizeMatMul", "Gemm", "GroupQueryAttention", "MatMul", "MatMulIntegerToFloat", "MatMulMiniFloat",
    "MatMulInteger", "MatMulNBits", "MultiHeadAttention",
)  # fmt: skip
"""They keep all axes of what they read first but the last."""


class UnknownError(Exception):
    """A value or a size cannot be told; why, for people."""


class Trial:
    """Values of a graph for certain sizes.

    Args:
        opset: Of the model.
        names: What the names of dimensions stand for.
        given: Values of graph inputs, by what they are called here; None for those that are none of the trial's.
        sizes: Of values, where the graph need not tell them.
    """

    def __init__(
        self, opset: int, names: Mapping[str, int], given: Callable[[ir.Value], Array | None] = lambda _value: None,
        sizes: Mapping[ir.Value, list[int]] | None = None,
    ) -> None:  # fmt: skip
        self._opset, self._names, self._given = opset, names, given
        self._sizes: dict[ir.Value, list[int] | None] = dict(sizes or {})
        self._arrays: dict[ir.Value, Array] = {}

    def array(self, value: ir.Value, fed: Mapping[ir.Value, Array] | None = None) -> Array:
        """What a value is where some values are as they are `fed`.

        Raises:
            UnknownError: It depends on more than that, on constants that are too large, or does not run.
        """
        if fed:
            return _run(*self._part(value, fed))
        if value not in self._arrays:
            self._arrays[value] = _run(*self._part(value, {}))
        return self._arrays[value]

    def sizes(self, value: ir.Value) -> list[int]:
        """The sizes of a value; raises UnknownError."""
        if value not in self._sizes:
            self._sizes[value] = None  # where it depends on itself
            stated = self._stated(value)
            self._sizes[value] = self._followed(value) if stated is None else stated
        found = self._sizes[value]
        if found is None:
            raise UnknownError("the sizes of a tensor are not known")
        return list(found)

    def _stated(self, value: ir.Value) -> list[int] | None:
        if (tensor := stored_constant(value)) is not None:
            return [int(size) for size in tensor.shape.numpy()]
        if value.shape is None:
            return None
        sizes = [self._size(dim) for dim in value.shape]
        return None if None in sizes else [size for size in sizes if size is not None]

    def _size(self, dim: int | ir.SymbolicDim) -> int | None:
        return dim if isinstance(dim, int) else self._names.get(dim.value or "")

    def _followed(self, value: ir.Value) -> list[int] | None:
        """Sizes by what makes a value."""
        node = value.producer()
        if node is None or not node.inputs or node.inputs[0] is None:
            return None
        first = node.inputs[0]
        if node.op_type in _KEEP_SIZES:
            is_number = node.op_type == _CODES and value is not node.outputs[0]
            return [] if is_number else self._maybe(first)
        if node.op_type in _PRODUCTS:
            lead, last = self._maybe(first), self._last(node, value)
            return [*lead[:-1], last] if lead is not None and last is not None else None
        if is_standard(node, *_BROADCAST):
            return self._broadcast(node)
        if is_standard(node, "Transpose") and (sizes := self._maybe(first)) is not None:
            return [sizes[axis] for axis in node.attributes.get_ints("perm", range(len(sizes))[::-1])]
        if is_standard(node, "Gather") and node.inputs[1] is not None:
            read, places, axis = self._maybe(first), self._maybe(node.inputs[1]), node.attributes.get_int("axis", 0)
            return [*read[:axis], *places, *read[axis + 1 :]] if read and places is not None and axis >= 0 else None
        if is_standard(node, "Split"):
            return self._split(node, value)
        if is_standard(node, *_MOVES):
            return self._moved(node, value)
        if is_standard(node, "Reshape") and node.inputs[1] is not None:
            return self._reshaped(node, node.inputs[1])
        return None

    def _last(self, node: ir.Node, product: ir.Value) -> int | None:
        """The columns of a product."""
        if product.shape is not None and isinstance(last := product.shape[-1], int):
            return last
        right = node.inputs[1] if is_standard(node, "MatMul", "MatMulInteger") else None
        if right is None:
            return None
        weight = constant_of(right)
        sizes = self._maybe(right) if weight is None else weight.shape.numpy()
        return int(sizes[-1]) if sizes else None

    def _maybe(self, value: ir.Value) -> list[int] | None:
        try:
            return self.sizes(value)
        except UnknownError:
            return None

    def _broadcast(self, node: ir.Node) -> list[int] | None:
        """Of the operands that are known; those that are not hold the same axes, or it is none of them.

        Where all that are known are of one, it is what others are of.
        """
        rank = len(node.outputs[0].shape) if node.outputs[0].shape is not None else None
        known = [sizes for value in node.inputs if value is not None and (sizes := self._maybe(value)) is not None]
        if not known or (max(map(len, known)) != rank if rank is not None else len(known) < len(node.inputs)):
            return None
        sizes = list(np.broadcast_shapes(*map(tuple, known)))
        return None if 1 in sizes and len(known) < len(node.inputs) else sizes

    def _split(self, node: ir.Node, value: ir.Value) -> list[int] | None:
        whole = self._maybe(node.inputs[0]) if node.inputs[0] is not None else None
        tensor = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
        if whole is None or tensor is None:
            return None
        whole[node.attributes.get_int("axis", 0)] = int(tensor.numpy()[node.outputs.index(value)])
        return whole

    def _moved(self, node: ir.Node, value: ir.Value) -> list[int] | None:
        """By what a node makes of zeros."""
        fed: dict[ir.Value, Array] = {}
        for each in node.inputs if node.op_type == "Concat" else node.inputs[:1]:
            sizes = self._maybe(each) if each is not None else None
            if each is None or each.dtype is None or sizes is None:
                return None
            fed[each] = np.zeros(sizes, each.dtype.numpy())
        try:
            return list(self.array(value, fed).shape)
        except UnknownError:
            return None

    def _reshaped(self, node: ir.Node, shape: ir.Value) -> list[int] | None:
        try:
            wanted = [int(size) for size in self.array(shape)]
            if min(wanted, default=1) > 0:
                return wanted
            source = self.sizes(node.inputs[0]) if node.inputs[0] is not None else []
        except UnknownError:
            return None
        if not node.attributes.get_int("allowzero", 0):
            wanted = [source[axis] if size == 0 else size for axis, size in enumerate(wanted)]
        try:
            return list(np.empty(source, np.bool_).reshape(wanted).shape)
        except ValueError:
            return None

    def _part(self, value: ir.Value, fed: Mapping[ir.Value, Array]) -> tuple[ir.Model, dict[str, Array]]:
        """The nodes that make a value, as a model of their own, and what to feed it with."""
        made: dict[ir.Value, ir.Value] = {}
        inputs: dict[str, Array] = {}
        within: list[ir.Value] = []
        nodes: list[ir.Node] = []

        def enter(source: ir.Value, array: Array) -> None:
            name = f"i{len(made)}"
            kind = ir.TensorType(ir.DataType.from_numpy(array.dtype))
            made[source] = ir.Value(name=name, type=kind, shape=ir.Shape(array.shape))
            inputs[name] = array

        def hold(source: ir.Value, array: Array) -> None:
            tensor = ir.tensor(array, name=f"c{len(made)}")
            kind = ir.TensorType(tensor.dtype)
            made[source] = ir.Value(name=tensor.name, type=kind, shape=ir.Shape(array.shape), const_value=tensor)
            within.append(made[source])

        stack = [value]
        while stack:
            last, node = stack[-1], stack[-1].producer()
            if last in made:
                stack.pop()
                continue
            if last in fed:
                enter(last, fed[last])
            elif (tensor := stored_constant(last)) is not None:
                if tensor.size > _MOST:
                    raise UnknownError("it depends on a weight")
                hold(last, copy_of(tensor))
            elif node is None:
                given = self._given(last)
                if given is None:
                    raise UnknownError(f"it depends on input {last.name}")
                enter(last, given)
            elif is_standard(node, "Shape") and (known := self._shape(node)) is not None:
                hold(last, known)
            elif waiting := [each for each in node.inputs if each is not None and each not in made]:
                if not is_computation(node) or len(nodes) > _MOST_NODES:
                    raise UnknownError(f"it depends on what {node.op_type} makes")
                stack.extend(waiting)
                continue
            else:
                if not is_computation(node):
                    raise UnknownError(f"it depends on what {node.op_type} makes")
                nodes.append(copied(node, made, len(nodes)))
            stack.pop()
        graph = ir.Graph(
            [each for each in made.values() if each.name in inputs], [made[value]], nodes=nodes, initializers=within,
            opset_imports={"": self._opset}, name="part",
        )  # fmt: skip
        return ir.Model(graph, ir_version=10), inputs

    def _shape(self, node: ir.Node) -> Array | None:
        sizes = self._maybe(node.inputs[0]) if node.inputs[0] is not None else None
        if sizes is None:
            return None
        end = node.attributes.get_int("end") if "end" in node.attributes else None
        return np.array(sizes[node.attributes.get_int("start", 0) : end], np.int64)


def is_of_sizes(value: ir.Value | None, depth: int = 16) -> bool:
    """Whether a value is a constant, or computed of constants and of sizes of tensors alone."""
    if value is None or constant_of(value) is not None:
        return value is not None
    node = value.producer()
    if node is None or depth == 0 or not is_computation(node):
        return False
    return is_standard(node, "Shape") or all(is_of_sizes(each, depth - 1) for each in node.inputs if each is not None)


def numbered(sizes: Sequence[int]) -> npt.NDArray[np.float32]:
    """A tensor whose elements are 1, 2, 3, ..."""
    return np.arange(1, 1 + int(np.prod(sizes)), dtype=np.float32).reshape(sizes)


def places(array: Array) -> npt.NDArray[np.int64]:
    """From 0 on, which elements of a `numbered` tensor those of an array are.

    Raises:
        UnknownError: They are none of them.
    """
    found = np.rint(array).astype(np.int64)
    if np.abs(array - found).max(initial=0) > 0.25:
        raise UnknownError("numbers are changed on the way")
    return found - 1


def _run(model: ir.Model, inputs: Mapping[str, Array]) -> Array:
    from ..runtime.session import open_session, session_options

    value = model.graph.outputs[0]
    if (name := value.name or "") in inputs:
        return inputs[name]
    if value.const_value is not None:
        return value.const_value.numpy()
    try:
        session = open_session(ir.to_proto(model).SerializeToString(), session_options(threads=1))
        array: Array = session.run(None, dict(inputs))[0]
    except OnnxpressError as error:
        raise UnknownError(f"its nodes do not run: {error!s:.80}") from error
    except Exception as error:  # ONNX Runtime raises a type for each of its status codes
        raise UnknownError(f"its nodes do not run: {' '.join(str(error).split()):.80}") from error
    return array
