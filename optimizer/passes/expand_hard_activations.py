"""HardSwish and HardSigmoid in parts that have codes.

    HardSigmoid(x) = Clip(alpha x + beta, 0, 1)        HardSwish(x) = x HardSigmoid(x; 1/6, 1/2)

As codes the product by alpha is a change of scale, the sum is one of int8, and its rounding saturates in place of the
Clip. No runtime has either operator in int8.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graph.element_type import is_float32
from ..graph.rewriting import add_array, insert_before, replace, required, take_over_name
from .base import GraphPass


class ExpandHardActivations(GraphPass):
    """Write HardSwish and HardSigmoid of float32 as Mul, Add and Clip."""

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite; whether anything changed."""
        found = [
            node
            for node in model.graph
            if node.domain in ("", "ai.onnx")
            and node.op_type in ("HardSwish", "HardSigmoid")
            and is_float32(node.outputs[0])
        ]
        for node in found:
            self._expand(model.graph, node)
        return bool(found)

    @staticmethod
    def _expand(graph: ir.Graph, node: ir.Node) -> None:
        swish = node.op_type == "HardSwish"
        alpha = 1 / 6 if swish else node.attributes.get_float("alpha", 0.2)
        beta = 0.5 if swish else node.attributes.get_float("beta", 0.5)
        slope, offset, low, high = (
            add_array(graph, f"{node.name}_{name}", np.array(number, np.float32))
            for name, number in (("alpha", alpha), ("beta", beta), ("low", 0.0), ("high", 1.0))
        )
        x, like = node.inputs[0], node.outputs[0]
        scaled = insert_before(node, "Mul", [x, slope], like, suffix="_scaled")
        moved = insert_before(node, "Add", [scaled, offset], like, suffix="_moved")
        result = insert_before(node, "Clip", [moved, low, high], like, suffix="_clipped")
        if swish:
            result = insert_before(node, "Mul", [x, result], like, suffix="_product")
        take_over_name(required(result.producer()), node)
        replace(node, result)
