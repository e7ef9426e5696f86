"""Relu and Clip behind products whose results stay in float, in other words.

Where a Relu or Clip is the only reader of a product, and has a reader itself, ONNX Runtime expects a QuantizeLinear
behind it, as codes saturate where it cuts. Where there is none it computes the product in float between two
conversions (1.23 and 1.32 were tried). It does so of these two operators alone:

    Relu(x) = ThresholdedRelu(x, 0)        Clip(x, low, high) = Min(Max(x, low), high)
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from ..graph.matching import input_of, is_standard
from ..graph.rewriting import add_array, insert_before, replace, required
from .base import GraphPass


class DetachClamps(GraphPass):
    """Rewrite Relu and Clip. Left: those that nothing or several nodes read, of which nothing is expected.

    Args:
        readers: Nodes of the main graph, each the only reader of a product.
    """

    def __init__(self, readers: Iterable[ir.Node]) -> None:
        self._readers = readers

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite those among the nodes; whether any changed."""
        found = [
            node for node in self._readers if is_standard(node, "Relu", "Clip") and len(node.outputs[0].uses()) == 1
        ]
        for node in found:
            replace(node, _positive(node) if node.op_type == "Relu" else _within(model.graph, node))
        return bool(found)


def _positive(node: ir.Node) -> ir.Value:
    value, like = node.inputs[0], node.outputs[0]
    return insert_before(node, "ThresholdedRelu", [value], like, suffix="_positive", attributes={"alpha": 0.0})


def _within(graph: ir.Graph, node: ir.Node) -> ir.Value:
    value = required(node.inputs[0])
    for index, (op_type, name) in enumerate((("Max", "min"), ("Min", "max")), 1):
        bound = input_of(node, index)
        if name in node.attributes:  # up to opset 10
            number = np.array(node.attributes.get_float(name), np.float32)
            bound = add_array(graph, f"{node.name}_{name}", number)
        if bound is not None:
            value = insert_before(node, op_type, [value, bound], node.outputs[0], suffix=f"_{name}")
    return value
