"""How a function's body is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

DOMAIN = "onnxpress"

Attribute = int | str | Sequence[int] | ir.TensorProtocol


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

    def slice(self, value: ir.Value, begin: int, end: int) -> ir.Value:
        """Elements [begin, end) of the last axis."""
        return self.op("Slice", value, self.shape(begin), self.shape(end), self.shape(-1))


def function(
    op_type: str,
    overload: str,
    body: Body,
    inputs: Sequence[ir.Value],
    output: ir.Value,
    attributes: Mapping[str, int | str],
    opset: int,
) -> ir.Function:
    """The function of a body; its attributes are those of the op with their defaults."""
    graph = ir.Graph(inputs, [output], nodes=body.nodes, opset_imports={"": opset})
    defaults = [
        ir.Attr(name, ir.AttributeType.INT if isinstance(value, int) else ir.AttributeType.STRING, value)
        for name, value in attributes.items()
    ]
    return ir.Function(DOMAIN, op_type, overload, graph=graph, attributes=defaults)
