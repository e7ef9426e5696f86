"""Queries, keys and values of one product.

    x [batch, sequence, K]  ->  x W + b [batch, sequence, columns]  ->  [batch, heads, sequence, width] three times

What is between only moves numbers and multiplies by one, in many ways, such as Reshape, Transpose and Split, so it is
told by tries (see `trial`): which columns each head has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from .constants import constant_of
from .matching import is_standard
from .projection import Heads, Projection, read_product
from .rotary import factor_of
from .trial import Trial, UnknownError, is_of_sizes, numbered, places

_MOVES = ("Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
_DEEPEST = 60

_SIZES = ((2, 5), (3, 4))
"""Batch and sequence of the tries, unless the model fixes them; two, so that no constant passes for a size."""
_AXES = 3


def read_packed(
    query: ir.Value, key: ir.Value, value: ir.Value, opset: int
) -> tuple[Projection, Projection, Projection] | str | None:
    """The projections whose heads products read, as columns of one; None where they are not, or why they are unknown.

    Args:
        query: [batch, heads, sequence, width].
        key: [batch, heads, width, sequence].
        value: As the query.
        opset: Of the model.
    """
    ways = [_way(heads) for heads in (query, key, value)]
    source = ways[0][-1]
    if any(way[-1] is not source for way in ways):
        return None
    whole = read_product(source)
    if isinstance(whole, str):
        return whole
    if not _are_private(ways):
        return "others read the product of query, key and value"
    try:
        q, k, v = (_read(heads, whole, heads is key, opset) for heads in (query, key, value))
    except UnknownError as unknown:
        return str(unknown)
    return q, k, v


def _way(value: ir.Value) -> list[ir.Value]:
    """From heads to what they are of, all that only moves or scales them in between."""
    way = [value]
    for _ in range(_DEEPEST):
        node = way[-1].producer()
        if is_standard(node, *_MOVES):
            moved = [node.inputs[0]] if constant_of(node.inputs[0]) is None else []
        elif is_standard(node, "Mul", "Div"):
            moved = [each for each in node.inputs if not is_of_sizes(each)]
        else:
            break
        if len(moved) != 1 or moved[0] is None:
            break
        way.append(moved[0])
    return way


def _are_private(ways: Sequence[Sequence[ir.Value]]) -> bool:
    """Whether nobody reads what is on the ways but those on them, and one node each head, but for sizes."""
    on_them = {value.producer() for way in ways for value in way[:-1]}
    inner = {value for way in ways for value in way[1:]}
    made = {value for node in on_them if node is not None for value in node.outputs} | inner
    readers = {value: [node for node, _ in value.uses() if node.op_type != "Shape"] for value in made}
    return not any(value.is_graph_output() for value in made) and all(
        set(readers[value]) <= on_them if value in inner else len(readers[value]) <= 1 for value in made
    )


def _read(value: ir.Value, whole: Projection, turned: bool, opset: int) -> Projection:
    """The part of a product that heads are; raises UnknownError."""
    first, second = (_columns(value, whole, turned, opset, sizes) for sizes in _SIZES)
    if first[0] != second[0] or not np.array_equal(first[1], second[1]):
        raise UnknownError("heads of other columns for other sizes")
    factor, columns = first
    count, width = columns.shape
    return dataclasses.replace(
        whole, columns=columns.reshape(-1), factor=whole.factor * factor, heads=Heads(count, width)
    )  # fmt: skip


def _columns(
    value: ir.Value, whole: Projection, turned: bool, opset: int, sizes: Sequence[int]
) -> tuple[float, np.ndarray]:
    """The factor of heads and their columns [heads, width]; raises UnknownError."""
    x, source = whole.x, whole.result
    if x.shape is None or len(x.shape) != _AXES:
        raise UnknownError("the product reads no [batch, sequence, K]")
    lead = [dim if isinstance(dim, int) else size for dim, size in zip(x.shape, sizes, strict=False)]
    names = {
        dim.value: size
        for dim, size in zip(x.shape, sizes, strict=False)
        if isinstance(dim, ir.SymbolicDim) and dim.value is not None
    }
    shape = [*lead, whole.heads.width]
    trial = Trial(opset, names, sizes={x: [*lead, whole.K], source: shape})
    factor = factor_of(value, source, shape, trial, {})
    found = places(trial.array(value, {source: numbered(shape)}) / np.float32(factor))
    if found.ndim != _AXES + 1:
        raise UnknownError("heads are no [batch, heads, sequence, width]")
    if turned:
        found = found.transpose(0, 1, 3, 2)
    batch, _, tokens, _ = found.shape
    columns = found[0, :, 0]
    rows = np.arange(batch * tokens).reshape(batch, 1, tokens, 1) * shape[-1]
    if [batch, tokens] != lead or (columns >= shape[-1]).any() or (found != rows + columns[None, :, None]).any():
        raise UnknownError("tokens are mixed on the way to the heads")
    return factor, columns
