"""What each output of a product reads: patches of a Conv's input, rows of a matrix.

Neighbouring patches tell much the same, so a few of each batch are drawn, and two of a batch count as seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from numpy.lib.stride_tricks import sliding_window_view

from ..graph.constants import constant_of
from ..graph.rewriting import required

Doubles = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

COUNTED = 2
"""Patches of a batch that count. Were all to count, 16 lines of text would mislead: a text recogniser then reads 92.5 %
of its lines, 95.5 % with two, as without compensation; with 128 lines 98.0 %, 98.5 % and 98.5 %."""
_LEAST_DRAWN = 64
"""Patches of a batch, and a sixteenth of K on top: 64 batches make four for each of many inputs."""


def inputs_of_output(node: ir.Node) -> int:
    """K."""
    shape = _weight_shape(node)
    if node.op_type == "Conv":
        return math.prod(shape[1:])
    return shape[1] if node.attributes.get_int("transB", 0) else shape[0]


def _weight_shape(node: ir.Node) -> tuple[int, ...]:
    """Of a constant, of which the graph itself may not say it."""
    return tuple(required(constant_of(required(node.inputs[1]))).shape.numpy())


def draw(node: ir.Node, x: Array, generator: np.random.Generator) -> Doubles:
    """Some of what the outputs of a node read of x, [G, n, K], in the order of the weight's elements."""
    most = _LEAST_DRAWN + inputs_of_output(node) // 16
    if node.op_type == "Conv":
        return _patches(node, x, most, generator)
    rows = rows_of(node, x)
    drawn = generator.choice(len(rows), min(most, len(rows)), replace=False)
    return np.asarray(rows[drawn], np.float64)[None]


def rows_of(node: ir.Node, x: Array) -> Array:
    """What the outputs of a product read of x, [n, K]."""
    return x.T if node.attributes.get_int("transA", 0) else x.reshape(-1, x.shape[-1])


def _patches(node: ir.Node, x: Array, most: int, generator: np.random.Generator) -> Doubles:
    kernel = list(_weight_shape(node)[2:])
    axes = range(2, x.ndim)
    strides, dilations = (node.attributes.get_ints(key, [1] * len(kernel)) for key in ("strides", "dilations"))
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    x = np.pad(x, [(0, 0), (0, 0), *_pads(node, x.shape[2:], spans, strides)])
    windows = sliding_window_view(x, spans, axis=tuple(axes))
    every = (slice(None), slice(None))
    windows = windows[every + tuple(slice(None, None, step) for step in [*strides, *dilations])]
    places = (len(x), *windows.shape[2 : 2 + len(kernel)])
    drawn = generator.choice(math.prod(places), min(most, math.prod(places)), replace=False)
    batch, *place = np.unravel_index(drawn, places)
    groups = node.attributes.get_int("group", 1)
    chosen = (batch, slice(None), *place)
    rows = windows[chosen].reshape(len(drawn), groups, -1)
    return np.asarray(rows.transpose(1, 0, 2), np.float64)


def _pads(node: ir.Node, sizes: Sequence[int], spans: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Zeros at the beginning and the end of each axis, as the operator Conv defines auto_pad."""
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        steps = zip(sizes, spans, strides, strict=True)
        totals = [max(0, (-(-size // stride) - 1) * stride + span - size) for size, span, stride in steps]
        halves = [(total // 2, total - total // 2) for total in totals]
        return halves if auto == "SAME_UPPER" else [(end, begin) for begin, end in halves]
    pads = node.attributes.get_ints("pads", [0] * 2 * len(sizes)) if auto == "NOTSET" else [0] * 2 * len(sizes)
    return list(zip(pads[: len(sizes)], pads[len(sizes) :], strict=True))
