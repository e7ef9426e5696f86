"""Operators whose axes may be put in another order: what changes of a node when they are.

A value v of a node is wanted as v' with v = Transpose(v', perm): axis i of v is axis perm[i] of v'. So an axis a
becomes perm[a]; a list with one entry an axis is put in the order of v'; and a constant, which broadcasts against v, is
transposed by the inverse of perm, once it has as many axes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .constants import constant_of
from .matching import exact_rank, input_of

Perm = tuple[int, ...]

_MAPS = {
    "Abs", "Cast", "Ceil", "Clip", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu",
    "Log", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Sqrt", "Tanh",
}  # fmt: skip
_BROADCASTS = {"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "PRelu", "Sum", "Mean", "Where", "Concat"}
_REDUCTIONS = {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"}


@dataclasses.dataclass(frozen=True)
class Edit:
    """What changes of a node.

    Attributes:
        data: Indices of the inputs whose axes change.
        attributes: New ones.
        constants: New constants, by the index of the input.
        keeps_rank: Whether the axes of the outputs change like those of the inputs; else they stay as they are.
    """

    data: tuple[int, ...] = (0,)
    attributes: dict[str, int | list[int]] = dataclasses.field(default_factory=dict)
    constants: dict[int, npt.NDArray[np.generic]] = dataclasses.field(default_factory=dict)
    keeps_rank: bool = True


def inverse(perm: Perm) -> Perm:
    """The order that undoes another."""
    return tuple(int(axis) for axis in np.argsort(perm))


def perm_of(node: ir.Node) -> Perm | None:
    """The order that a Transpose gives; None where it has none written."""
    perm = tuple(node.attributes.get_ints("perm", ()))
    return perm if sorted(perm) == list(range(len(perm))) and perm else None


def reordered(node: ir.Node, perm: Perm, opset: int) -> Edit | None:
    """What changes of a node when the axes of its data do; None where it cannot or it is not known how."""
    if not node.inputs or node.domain not in ("", "ai.onnx"):
        return None
    edit = _edit(node, perm, opset)
    if edit is None or any(exact_rank(input_of(node, index)) != len(perm) for index in edit.data):
        return None
    return edit


def _edit(node: ir.Node, perm: Perm, opset: int) -> Edit | None:
    if node.op_type in _MAPS:
        return Edit()
    if node.op_type in _BROADCASTS:
        return _broadcast(node, perm)
    if node.op_type in _REDUCTIONS:
        return _lowered(node, perm, "axes", bool(node.attributes.get_int("keepdims", 1)))
    if node.op_type == "Squeeze":
        return _lowered(node, perm, "axes", False)
    rules: dict[str, Callable[[ir.Node, Perm, int], Edit | None]] = {
        "Softmax": _softmax, "LogSoftmax": _softmax, "Pad": _pad, "Slice": _slice, "Resize": _resize, "Split": _split,
    }  # fmt: skip
    rule = rules.get(node.op_type)
    return rule(node, perm, opset) if rule is not None else None


def _fixed(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """A constant of any type that no caller can override."""
    tensor = constant_of(value)
    return np.asarray(tensor.numpy()) if tensor is not None else None


def _integers(value: ir.Value | None) -> list[int] | None:
    array = _fixed(value)
    return [int(each) for each in array.reshape(-1)] if array is not None and array.dtype.kind == "i" else None


def _axis(axis: int, perm: Perm) -> int | None:
    return perm[axis] if -len(perm) <= axis < len(perm) else None


def _axes(axes: Sequence[int], perm: Perm) -> list[int] | None:
    found = [_axis(axis, perm) for axis in axes]
    known = [axis for axis in found if axis is not None]
    return known if len(known) == len(found) else None


def _by_axis(each: npt.NDArray[np.generic], perm: Perm) -> npt.NDArray[np.generic] | None:
    """A list with one entry an axis."""
    return each[list(inverse(perm))] if each.shape == (len(perm),) else None


def _broadcast(node: ir.Node, perm: Perm) -> Edit | None:
    """Data, and constants that broadcast against it; of Concat, with the axis."""
    attributes: dict[str, int | list[int]] = {}
    if node.op_type == "Concat":
        axis = _axis(node.attributes.get_int("axis", 0), perm)
        if axis is None:
            return None
        attributes["axis"] = axis
    data, constants = [], {}
    for index, value in enumerate(node.inputs):
        array = _fixed(value)
        if array is None:
            data.append(index)
            continue
        if array.ndim > len(perm) or (node.op_type == "Concat" and array.ndim < len(perm)):
            return None
        if array.size != 1 or node.op_type == "Concat":
            wide = array.reshape((1,) * (len(perm) - array.ndim) + array.shape)
            constants[index] = np.ascontiguousarray(wide.transpose(inverse(perm)))
    return Edit(tuple(data), attributes, constants) if data else None


def _lowered(node: ir.Node, perm: Perm, name: str, keeps_rank: bool) -> Edit | None:
    """A reduction or Squeeze. Where axes vanish, the others must keep their order."""
    given = node.attributes.get_ints(name, None) if name in node.attributes else _integers(input_of(node, 1))
    axes = _axes(given, perm) if given else None
    if axes is None:
        return None
    rest = [perm[axis] for axis in range(len(perm)) if perm[axis] not in axes]
    if not keeps_rank and rest != sorted(rest):
        return None
    return _with_integers(node, name, 1, axes, keeps_rank)


def _with_integers(node: ir.Node, name: str, index: int, values: list[int], keeps_rank: bool = True) -> Edit:
    """Integers that older opsets have in an attribute and newer ones in an input."""
    if name in node.attributes:
        return Edit(attributes={name: values}, keeps_rank=keeps_rank)
    return Edit(constants={index: np.array(values, np.int64)}, keeps_rank=keeps_rank)


def _softmax(node: ir.Node, perm: Perm, opset: int) -> Edit | None:
    axis = _axis(node.attributes.get_int("axis", -1 if opset >= 13 else 1), perm)
    if opset < 13 and (axis != len(perm) - 1 or axis != perm[-1]):
        return None  # it takes all axes from this one on as one
    return Edit(attributes={"axis": axis}) if axis is not None else None


def _split(node: ir.Node, perm: Perm, opset: int) -> Edit | None:
    axis = _axis(node.attributes.get_int("axis", 0), perm)
    return Edit(attributes={"axis": axis}) if axis is not None else None


def _pad(node: ir.Node, perm: Perm, opset: int) -> Edit | None:
    if input_of(node, 3) is not None:
        return None
    pads = node.attributes.get_ints("pads") if "pads" in node.attributes else _integers(input_of(node, 1))
    if pads is None or len(pads) != 2 * len(perm):
        return None
    order = inverse(perm)
    both = np.array(pads).reshape(2, -1)[:, order].reshape(-1).tolist()
    return _with_integers(node, "pads", 1, both)


def _slice(node: ir.Node, perm: Perm, opset: int) -> Edit | None:
    if "starts" in node.attributes:
        count = len(node.attributes.get_ints("starts", ()))
        axes = _axes(node.attributes.get_ints("axes", tuple(range(count))), perm)
        return Edit(attributes={"axes": axes}) if axes is not None else None
    starts = _fixed(input_of(node, 1))
    if starts is None:
        return None
    given = list(range(starts.size)) if input_of(node, 3) is None else _integers(node.inputs[3])
    axes = _axes(given, perm) if given is not None else None
    return Edit(constants={3: np.array(axes, starts.dtype)}) if axes is not None else None


def _resize(node: ir.Node, perm: Perm, opset: int) -> Edit | None:
    """Scales or sizes of all axes; `roi` is for cropping, and then the node is left."""
    if (
        "axes" in node.attributes
        or node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    ):
        return None
    constants = {}
    for index in (1,) if opset < 11 else (2, 3):
        value = input_of(node, index)
        array = _fixed(value)
        if value is None or (array is not None and array.size == 0):
            continue
        ordered = _by_axis(array, perm) if array is not None else None
        if ordered is None:
            return None
        constants[index] = ordered
    return Edit(constants=constants) if constants else None
