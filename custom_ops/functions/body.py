"""How a function's body is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

DOMAIN = "onnxpress"

Attribute = int | str | Sequence[int] | ir.TensorProtocol
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
        node = ir.node("Constant", [], attributes={"value": ir.tensor(array)}, name=f"Constant_{len(self.nodes)}")
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


def function(
    op_type: str,
    overload: str,
    body: Body,
    inputs: Sequence[ir.Value],
    output: ir.Value,
    attributes: Mapping[str, int | str],
    opset: int,
    required: Mapping[str, ir.AttributeType] | None = None,
) -> ir.Function:
    """The function of a body; its attributes are those of the op with their defaults, and those without one."""
    graph = ir.Graph(inputs, [output], nodes=body.nodes, opset_imports={"": opset})
    defaults = [
        ir.Attr(name, ir.AttributeType.INT if isinstance(value, int) else ir.AttributeType.STRING, value)
        for name, value in attributes.items()
    ]
    defaults += [ir.Attr(name, kind, None) for name, kind in (required or {}).items()]
    return ir.Function(DOMAIN, op_type, overload, graph=graph, attributes=defaults)
