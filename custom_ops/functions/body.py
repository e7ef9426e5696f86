"""How a function's body is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

DOMAIN = "onnxpress"

Attribute = int | str | Sequence[int] | ir.TensorProtocol
_KINDS = {int: ir.AttributeType.INT, float: ir.AttributeType.FLOAT, str: ir.AttributeType.STRING}
Size = int | ir.Value
"""A length that is known when the body is written, or an int64 list of one that is computed when it runs."""


class Body:
    """Appends nodes of standard ops."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []

    def op(self, op_type: str, *inputs: ir.Value, **attributes: Attribute) -> ir.Value:
        """The output of a new node."""
        node = ir.node(op_type, list(inputs), attributes=attributes, name=f"{op_type}_{len(self.nodes)}")
        node.outputs[0].name = f"v{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, array: np.ndarray) -> ir.Value:
        """A constant."""
        value = ir.AttrTensor("value", ir.Tensor(array))
        node = ir.Node("", "Constant", [], [value], name=f"Constant_{len(self.nodes)}")
        node.outputs[0].name = f"v{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def shape(self, *dims: int) -> ir.Value:
        """A constant int64 list."""
        return self.constant(np.array(dims, np.int64))

    def attribute(self, name: str, kind: ir.AttributeType) -> ir.Value:
        """An attribute of the function as a constant: INT as a scalar, INTS as a list."""
        key = {ir.AttributeType.INT: "value_int", ir.AttributeType.INTS: "value_ints"}[kind]
        node = ir.Node("", "Constant", [], [ir.RefAttr(key, name, kind)], name=f"Constant_{len(self.nodes)}")
        node.outputs[0].name = f"v{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def size(self, size: Size) -> ir.Value:
        """A length as an int64 list of one."""
        return size if isinstance(size, ir.Value) else self.shape(size)

    def add(self, a: Size, b: Size) -> Size:
        """The sum of two lengths."""
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        return self.op("Add", self.size(a), self.size(b))

    def ceil_divide(self, size: Size, divisor: Size) -> Size:
        """A length divided by a positive one, rounded up."""
        if isinstance(size, int) and isinstance(divisor, int):
            return -(-size // divisor)
        above = self.add(self.add(size, divisor), -1)
        return self.op("Div", self.size(above), self.size(divisor))

    def slice(self, value: ir.Value, begin: Size, end: Size) -> ir.Value:
        """Elements [begin, end) of the last axis."""
        return self.op("Slice", value, self.size(begin), self.size(end), self.shape(-1))

    def number(self, value: float) -> ir.Value:
        """A constant of float32."""
        return self.constant(np.array(value, np.float32))

    def reduce_last(self, op_type: str, x: ir.Value, opset: int) -> ir.Value:
        """Over the last axis, kept. Axes became an input with opset 13 for the sum, with opset 18 for all else."""
        if opset >= (13 if op_type == "ReduceSum" else 18):
            return self.op(op_type, x, self.shape(-1), keepdims=1)
        return self.op(op_type, x, axes=[-1], keepdims=1)

    def activate(self, y: ir.Value, activation: str) -> ir.Value:
        """Nothing, "relu", "gelu" or "gelu_tanh" of a value."""
        if activation == "relu":
            return self.op("Relu", y)
        if activation == "gelu":
            inner = self.op("Erf", self.op("Div", y, self.number(math.sqrt(2))))
        elif activation == "gelu_tanh":
            cube = self.op("Mul", self.op("Mul", y, y), y)
            sum_ = self.op("Add", y, self.op("Mul", cube, self.number(0.044715)))
            inner = self.op("Tanh", self.op("Mul", sum_, self.number(math.sqrt(2 / math.pi))))
        else:
            return y
        return self.op("Mul", self.op("Mul", y, self.number(0.5)), self.op("Add", inner, self.number(1)))


def function(
    op_type: str,
    overload: str,
    body: Body,
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    attributes: Mapping[str, int | float | str],
    opset: int,
    required: Mapping[str, ir.AttributeType] | None = None,
) -> ir.Function:
    """The function of a body; its attributes are those of the op with their defaults, and those without one."""
    graph = ir.Graph(inputs, outputs, nodes=body.nodes, opset_imports={"": opset})
    defaults = [ir.Attr(name, _KINDS[type(value)], value) for name, value in attributes.items()]
    defaults += [ir.Attr(name, kind, None) for name, kind in (required or {}).items()]
    return ir.Function(DOMAIN, op_type, overload, graph=graph, attributes=defaults)
