"""Guards of rewrite rules: whether a match is one that the rule is right on.

Each looks at the nodes that a rule would replace, before it does, and answers no where it does not know.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from .matching import input_of, least_rank, opset_of

_TYPES_OF_CLIP = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT32, ir.DataType.INT64)
_EXACT_IN_FLOAT = (
    ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.BOOL,
    ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16,
)  # fmt: skip
_TYPES_OF_CONSTANTS = (
    ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL,
)  # fmt: skip


class Match:
    """What a rule would replace.

    Attributes:
        opset: Version of the standard operators.
        nodes: The nodes, the last of the graph first.
    """

    def __init__(self, model: ir.Model, match: Any) -> None:
        self.opset = opset_of(model)
        self.nodes: list[ir.Node] = list(match.nodes)

    @property
    def root(self) -> ir.Node:
        """The node whose result is replaced."""
        return self.nodes[0]

    def all(self, *op_types: str) -> list[ir.Node]:
        """The nodes of some operators."""
        return [node for node in self.nodes if node.op_type in op_types]

    def one(self, *op_types: str) -> ir.Node:
        """The only node of some operators."""
        (node,) = self.all(*op_types)
        return node


def is_same_size(a: int | ir.SymbolicDim, b: int | ir.SymbolicDim) -> bool:
    """Whether two sizes are equal; those without a proper name, such as "?", are not known to be."""
    if isinstance(a, int) or isinstance(b, int):
        return a == b
    return a.value == b.value and any(letter.isalnum() for letter in str(a.value or ""))


def opset(least: int) -> Callable[[Match], bool]:
    """From this opset on."""
    return lambda match: match.opset >= least


def constant_is(wanted: float) -> Callable[[Match], bool]:
    """The second operand is this number, to the bit."""

    def guard(match: Match) -> bool:
        array = _array(match.root.inputs[1])
        return array is not None and array.size == 1 and array.reshape(-1)[0] == array.dtype.type(wanted)

    return guard


def exact_cast(match: Match) -> bool:
    """float32 holds all numbers of the type that is cast first."""
    return match.nodes[-1].inputs[0] is not None and match.nodes[-1].inputs[0].dtype in _EXACT_IN_FLOAT


def cast_of_number(match: Match) -> bool:
    """The type that a ConstantOfShape is cast to has its number."""
    to = ir.DataType(match.root.attributes.get_int("to", 0))
    value = match.nodes[-1].attributes.get("value")
    array = value.as_tensor().numpy() if value is not None else np.zeros(1, np.float32)
    if to not in _TYPES_OF_CONSTANTS or array.size != 1 or array.dtype.kind not in "fiub":
        return False
    with np.errstate(all="ignore"):
        there = array.astype(to.numpy())
        return bool((there.astype(array.dtype) == array).all())


def numbers_ahead_of_conv(match: Match) -> bool:
    """Conv(x s + t) with numbers that leave the shape of x as it is, and without padding."""
    conv, mul = match.one("Conv"), match.one("Mul")
    if not _is_float32(conv.inputs[0], *conv.inputs[1:], *_operands(match)) or len(_shape(conv.inputs[1])) != 4:
        return False
    rank = least_rank(mul.inputs[0])
    return conv.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID") and all(
        len(_shape(value)) <= rank for value in _operands(match)
    )


def numbers_behind_conv(match: Match) -> bool:
    """Conv(x) s + t with numbers that leave the shape of the bias as it is."""
    conv = match.one("Conv")
    return _is_float32(conv.outputs[0], *conv.inputs[1:], *_operands(match)) and all(
        len(_shape(value)) <= 1 for value in _operands(match)
    )


def sliced_sizes_are_numbers(match: Match) -> bool:
    """Along the axes of a Slice, both sizes are known, and the result's is not what somebody only states."""
    node = match.root
    data, result, axes = node.inputs[0], node.outputs[0], _array(input_of(node, 3))
    if data is None or data.shape is None or result.shape is None or axes is None:
        return False
    if any(_array(value) is None for value in node.inputs[1:]):
        return False
    return all(isinstance(data.shape[axis], int) and data.shape[axis] == result.shape[axis] for axis in axes.tolist())


def flat_size_is_known(match: Match) -> bool:
    """A Flatten one of whose sizes is known, so that a Reshape can tell the other; 0 would mean another axis to it."""
    node = match.root
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None or 0 in shape.dims:
        return False
    axis = node.attributes.get_int("axis", 1)
    axis += len(shape) if axis < 0 else 0
    return any(all(isinstance(size, int) for size in part) for part in (shape[:axis], shape[axis:]))


def normalization_of_inference(match: Match) -> bool:
    """BatchNormalization with running statistics, one number a channel, of float32 throughout."""
    norm, product = match.one("BatchNormalization"), match.one("Conv", "ConvTranspose", "Gemm")
    if norm.attributes.get_int("training_mode", 0) or not norm.attributes.get_int("spatial", 1):
        return False
    if product.op_type == "Gemm" and product.attributes.get_float("beta", 1.0) != 1:
        return False
    constants = [*product.inputs[1:], *norm.inputs[1:]]
    sizes = {_shape(value) for value in norm.inputs[1:]}
    return (
        len(norm.inputs) == 5 and _is_float32(*constants) and len(sizes) == 1 and all(len(each) == 1 for each in sizes)
    )


def pads_are_an_input(match: Match) -> bool:
    """Pad of opset 11 or newer."""
    return input_of(match.one("Pad"), 1) is not None


def bounds_are_numbers(match: Match) -> bool:
    """Max and Min with constants of one element, where they broadcast."""
    constants = [value for node in match.nodes for value in node.inputs[1:]]
    return match.opset >= 8 and all(len(node.inputs) > 1 for node in match.nodes) and all(map(_is_single, constants))


def bounds_of_clip(match: Match) -> bool:
    """Max and Min whose constants Clip takes: numbers of a type that it has, the low one not above the high one."""
    x, constants = match.nodes[-1].inputs[0], [value for node in match.nodes for value in node.inputs[1:]]
    if match.opset < 12 or not bounds_are_numbers(match) or x is None or x.dtype not in _TYPES_OF_CLIP:
        return False
    if any(len(_shape(value)) > least_rank(x) for value in constants):
        return False
    low, high = (
        function(_number(value) for node in match.all(op_type) for value in node.inputs[1:])
        for op_type, function in (("Max", max), ("Min", min))
    )
    return low <= high


def clips(match: Match) -> bool:
    """Clip and Relu of a known type with bounds as inputs, where what is left between them is not empty."""
    x = match.nodes[-1].inputs[0]
    if match.opset < 11 or x is None or x.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE):
        return False
    lows, highs = [0.0] if match.all("Relu") else [], [math.inf]
    for clip in match.all("Clip"):
        bounds = [input_of(clip, 1), input_of(clip, 2)]
        if any(value is not None and not _is_single(value) for value in bounds):
            return False
        lows += [_number(bounds[0])] if bounds[0] is not None else []
        highs += [_number(bounds[1])] if bounds[1] is not None else []
    return max(lows, default=-math.inf) <= min(highs)


def scatters_known_sizes(match: Match) -> bool:
    """The axis that is scattered over is as long as what is written."""
    scatter, gather, shape = match.one("ScatterND"), match.one("Gather"), match.one("Shape")
    data, written = shape.inputs[0], scatter.inputs[0]
    axis = _array(gather.inputs[1])
    if axis is None or data is None or data.shape is None or written is None or written.shape is None:
        return False
    return axis.size == 1 and is_same_size(data.shape[int(axis.reshape(-1)[0])], written.shape[0])


def scatter_without_reduction(match: Match) -> bool:
    """ScatterND that replaces rows, whose number is known."""
    node = match.root
    data = node.inputs[0]
    return (
        node.attributes.get_string("reduction", "none") == "none"
        and data is not None
        and data.shape is not None
        and isinstance(data.shape[0], int)
    )


def same_padding_of_dense_kernel(match: Match) -> bool:
    """A Conv with auto_pad alone, whose kernel has no gaps, and the output that this makes."""
    conv = match.root
    attributes = conv.attributes
    x, y = conv.inputs[0], conv.outputs[0]
    if any(attributes.get_ints("pads", ())) or any(size != 1 for size in attributes.get_ints("dilations", ())):
        return False
    if attributes.get_string("auto_pad", "") == "VALID":
        return True
    if x is None or x.shape is None or y.shape is None:
        return False
    sizes = list(zip(x.shape[2:], y.shape[2:], strict=True))
    strides = attributes.get_ints("strides", [1] * len(sizes))
    return all(
        isinstance(size, int) and result == -(-size // stride)
        for (size, result), stride in zip(sizes, strides, strict=True)
    )


def reshapes_rows_alone(match: Match) -> bool:
    """The Reshapes before a MatMul keep the columns of the left and all of the right, which is one matrix."""
    product = match.one("MatMul")
    matrix: list[tuple[Any, ...]] = []
    for index, before in enumerate(product.inputs):
        reshape = before.producer() if before is not None else None
        given = reshape.inputs[0] if reshape is not None and reshape in match.nodes else before
        if before is None or given is None or before.shape is None or given.shape is None:
            return False
        if min(len(before.shape), len(given.shape)) < 2:
            return False
        kept = 1 if index == 0 else 2
        if any(not isinstance(size, int) for size in given.shape) or before.shape[-kept:] != given.shape[-kept:]:
            return False
        matrix = [before.shape[:-2], given.shape[:-2]]
    return all(size == 1 for sizes in matrix for size in sizes)


def _array(value: ir.Value | None) -> Any:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()


def _number(value: ir.Value | None) -> float:
    return float(_array(value).reshape(-1)[0])


def _is_single(value: ir.Value | None) -> bool:
    array = _array(value)
    return array is not None and array.size == 1 and not np.isnan(array.astype(np.float64)).any()


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return () if tensor is None else tuple(tensor.shape.numpy())


def _is_float32(*values: ir.Value | None) -> bool:
    return all(value is not None and value.dtype == ir.DataType.FLOAT for value in values)


def _operands(match: Match) -> list[ir.Value]:
    """The constants of Mul and Add."""
    found = [value for node in match.all("Mul", "Add") for value in node.inputs]
    return [value for value in found if value is not None and ir.convenience.get_const_tensor(value) is not None]
