"""What an attention adds to its scores, read as a mask of padding.

Scores are [batch, heads, queries, keys]. A mask of padding says of each key of a batch entry whether it counts, so it
starts as a tensor m [batch, keys] and is then widened by axes of one, or repeated along them, and mapped: such as
(1 - m) * -10000, added to the scores. Since m is 0 or 1 the map is known by its two values, whatever its form. m is a
truth value (exact for every input), or an integer input that the map treats as one, as attention_mask is: 0 and 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from .constants import constant_of, scalar, stored_constant

_STANDARD = ("", "ai.onnx")
_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
_NUMBERS = {*map(int, (*_INTEGERS, ir.DataType.BOOL, ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16))}
_DEEPEST = 32
LARGE = 1e4
"""exp(-1e4) is 0 next to any score that float32 products give."""
_LOWEST = float(np.finfo(np.float32).min)


@dataclasses.dataclass(frozen=True)
class PaddingMask:
    """Which keys count.

    Attributes:
        root: Integers or truth values, [batch, keys] or [batch, 1, 1, keys].
        counts: The value of `root` at keys that count, 0 or 1.
        filter_value: Added to the scores of the others.
    """

    root: ir.Value
    counts: int
    filter_value: float


@dataclasses.dataclass(frozen=True)
class _Mapped:
    """A value as a map of a root; a constant has none.

    Its axes are "b" and "k" where they are the root's, "" where it is the same along them; `values` are what 0 and 1
    become.
    """

    root: ir.Value | None
    axes: tuple[str, ...]
    values: tuple[float, float]


def added_mask(value: ir.Value) -> PaddingMask | None:
    """The mask that is added to the scores, None where it is none of padding."""
    mapped = _read(value, 0)
    if mapped is None or not _is_padding(mapped) or 0.0 not in mapped.values:
        return None
    counts = mapped.values.index(0.0)
    filter_value = max(mapped.values[1 - counts], _LOWEST)
    assert mapped.root is not None
    return PaddingMask(mapped.root, counts, filter_value) if filter_value < 0 else None


def chosen_mask(condition: ir.Value, fill: float, scores_where: bool) -> PaddingMask | None:
    """The mask of Where(condition, ...) with the scores where the condition is `scores_where`, else `fill`.

    The fill must be so low that nothing of such a key is left; then adding the lowest float32 to its score is the
    same, also where no key counts: the scores vanish in it. (After -inf that would be NaN; now all keys count alike.)
    """
    mapped = _read(condition, 0)
    if mapped is None or not _is_padding(mapped) or mapped.values[0] == mapped.values[1] or not fill <= -LARGE:
        return None
    counts = int(bool(mapped.values[1]) == scores_where)
    assert mapped.root is not None
    return PaddingMask(mapped.root, counts, _LOWEST)


def _is_padding(mapped: _Mapped) -> bool:
    """Whether the axes are those of [batch, heads, queries, keys] with the same for all heads and queries."""
    return mapped.root is not None and mapped.axes == ("b", "", "", "k") and not any(map(np.isnan, mapped.values))


def _read(value: ir.Value | None, depth: int) -> _Mapped | None:
    if value is None or depth > _DEEPEST:
        return None
    number = scalar(value)
    if number is not None:
        return _Mapped(None, (), (number, number))
    if stored_constant(value) is not None:
        return None
    node = value.producer()
    if node is not None and node.domain in _STANDARD:
        if node.op_type in _WIDENINGS:
            return _widen(node, depth)
        if node.op_type in _MAPS:
            return _map(node, depth)
    return _root(value)


def _root(value: ir.Value) -> _Mapped | None:
    """A value that the mask starts from: truth values, or an integer input of the model."""
    is_input = value.is_graph_input() and value.dtype in _INTEGERS
    if value.shape is None or not (value.dtype == ir.DataType.BOOL or _makes_truth(value.producer()) or is_input):
        return None
    if len(value.shape) == 2:
        return _Mapped(value, ("b", "k"), (0.0, 1.0))
    if len(value.shape) == 4 and value.shape[1] == 1 and value.shape[2] == 1:
        return _Mapped(value, ("b", "", "", "k"), (0.0, 1.0))
    return None


def _makes_truth(node: ir.Node | None) -> bool:
    return node is not None and node.domain in _STANDARD and node.op_type in _TRUTHS


def _widen(node: ir.Node, depth: int) -> _Mapped | None:
    """Axes of one, or repetition along them."""
    inner = _read(node.inputs[0], depth + 1)
    if inner is None or inner.root is None:
        return inner
    shape = node.outputs[0].shape
    if node.op_type == "Identity":
        return inner
    if node.op_type == "Unsqueeze":
        at = _axes(node)
        if at is None:
            return None
        whole = len(inner.axes) + len(at)
        places = {axis % whole for axis in at}
        rest = iter(inner.axes)
        return dataclasses.replace(inner, axes=tuple("" if i in places else next(rest, "") for i in range(whole)))
    if node.op_type == "Expand":
        sizes = node.inputs[1].shape if node.inputs[1] is not None else None
        rank: object = len(shape) if shape is not None else sizes[0] if sizes is not None and len(sizes) == 1 else None
        if not isinstance(rank, int):
            return None
        return dataclasses.replace(inner, axes=("",) * (rank - len(inner.axes)) + inner.axes)
    # Reshape: with ones in the middle, two axes that fit the scores' can only be batch and keys.
    ones = shape is not None and len(shape) == 4 and shape[1] == 1 and shape[2] == 1
    return dataclasses.replace(inner, axes=("b", "", "", "k")) if ones and inner.axes == ("b", "k") else None


def _axes(node: ir.Node) -> list[int] | None:
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        tensor = constant_of(node.inputs[1])
        if tensor is None or tensor.dtype != ir.DataType.INT64:
            return None
        return [int(i) for i in tensor.numpy().reshape(-1)]
    return list(node.attributes.get_ints("axes", [])) or None


def _map(node: ir.Node, depth: int) -> _Mapped | None:
    """One number to one number."""
    operands = [_read(value, depth + 1) for value in node.inputs]
    if any(m is None for m in operands):
        return None
    known = [m for m in operands if m is not None]
    roots = {m.root for m in known if m.root is not None}
    axes = {m.axes for m in known if m.root is not None}
    if len(roots) != 1 or len(axes) != 1:
        return None
    with np.errstate(all="ignore"):
        zero, one = (float(_MAPS[node.op_type](node, *(m.values[i] for m in known))) for i in (0, 1))
    return _Mapped(roots.pop(), axes.pop(), (zero, one))


def _cast(node: ir.Node, x: float) -> float:
    to = node.attributes.get_int("to", 0)
    if to not in _NUMBERS:
        return float("nan")
    return float(np.asarray(x).astype(ir.DataType(to).numpy()))


_WIDENINGS = {"Identity", "Unsqueeze", "Expand", "Reshape"}
# What compares is where the mask starts: a comparison of tokens with that of padding has more than two operands.
_TRUTHS = {"Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "And", "Or"}
_MAPS: dict[str, Callable[..., float]] = {
    "Cast": _cast,
    "Add": lambda _, a, b: np.float32(a) + np.float32(b),
    "Sub": lambda _, a, b: np.float32(a) - np.float32(b),
    "Mul": lambda _, a, b: np.float32(a) * np.float32(b),
    "Not": lambda _, a: not a,
    "Where": lambda _, c, a, b: a if c else b,
}
