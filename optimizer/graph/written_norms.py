"""Parts that all normalizations have in common where exporters write them out."""

from __future__ import annotations

import onnx_ir as ir

from .constants import constant_of
from .matching import input_of, is_standard, number


def beside_number(node: ir.Node) -> tuple[ir.Value | None, float | None]:
    """What a node adds a number to that is not negative, and that number."""
    for index in (0, 1):
        value = number(input_of(node, index))
        if value is not None and value >= 0:
            return input_of(node, 1 - index), value
    return None, None


def mean_of(value: ir.Value | None) -> tuple[ir.Value | None, int | None]:
    """What a value is the mean of over one axis, which is kept, and that axis."""
    node = value.producer() if value is not None else None
    if not is_standard(node, "ReduceMean") or node.attributes.get_int("keepdims", 1) != 1:
        return None, None
    axes = list(node.attributes.get_ints("axes", []))
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        tensor = constant_of(node.inputs[1])
        axes = [] if tensor is None else [int(axis) for axis in tensor.numpy().reshape(-1)]
    return (node.inputs[0], axes[0]) if len(axes) == 1 else (None, None)


def root_of_squares(value: ir.Value | None) -> ir.Value | None:
    """What a value is the square of."""
    node = value.producer() if value is not None else None
    if is_standard(node, "Pow") and number(input_of(node, 1)) == 2:
        return node.inputs[0]
    return node.inputs[0] if is_standard(node, "Mul") and node.inputs[0] is input_of(node, 1) else None
