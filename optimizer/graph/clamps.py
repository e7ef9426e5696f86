"""Operators that bound what they are given: Relu, Clip, and Max and Min with a number."""

from __future__ import annotations

import dataclasses
import math

import onnx_ir as ir

from .matching import input_of, is_standard, number


@dataclasses.dataclass(frozen=True)
class Clamp:
    """min(max(x, low), high)."""

    x: ir.Value
    low: float
    high: float

    def then(self, other: Clamp) -> Clamp:
        """The clamp that does first this one, then the other, whose low does not exceed its high."""
        low, high = (min(max(bound, other.low), other.high) for bound in (self.low, self.high))
        return Clamp(self.x, low, high)


def read_clamp(node: ir.Node) -> Clamp | None:
    """What a node bounds and how, where its bounds are numbers that no caller can override, low below high."""
    x = input_of(node, 0)
    if is_standard(node, "Relu") and x is not None:
        return Clamp(x, 0.0, math.inf)
    if is_standard(node, "Clip") and x is not None:
        low, high = _bound(node, 1, "min", -math.inf), _bound(node, 2, "max", math.inf)
        return Clamp(x, low, high) if low is not None and high is not None and low <= high else None
    if not is_standard(node, "Max", "Min") or len(node.inputs) != 2:
        return None
    for x, other in (node.inputs, node.inputs[::-1]):
        bound = number(other, beside=x)
        if x is not None and bound is not None and not math.isnan(bound):
            return Clamp(x, bound, math.inf) if node.op_type == "Max" else Clamp(x, -math.inf, bound)
    return None


def _bound(node: ir.Node, index: int, name: str, default: float) -> float | None:
    if input_of(node, index) is not None:
        return number(node.inputs[index])
    bound = node.attributes.get_float(name, default)  # up to opset 10
    return default if abs(bound) > 3.4e38 else bound
