"""x + x g = x (g + 1): one product of the large tensor in place of a product and a sum, the sum where g is small.

That is the residual form of a squeeze-and-excitation block, whose gate g has one number a channel. The Mul stands for
the Add in recipes and reports.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graph.element_type import is_float32
from ..graph.matching import is_standard, sole_reader
from ..graph.rewriting import add_array, insert_before, replace, required, take_over_name
from .base import GraphPass


class FactorGates(GraphPass):
    """Write x + x g of float32 as x (g + 1), where g has fewer elements than x.

    Cases: the Add with the product on either side, and x on either side of the Mul; nothing else reads the product. g
    has size 1 along an axis where x has another.
    """

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite the main graph; whether anything changed."""
        changed = False
        for node in list(model.graph):
            parts = _gate(node)
            if parts is None:
                continue
            x, gate, scaled = parts
            one = add_array(model.graph, f"{node.outputs[0].name}_one", np.array(1, np.float32))
            more = insert_before(node, "Add", [gate, one], gate, suffix="_gate")
            product = insert_before(node, "Mul", [x, more], node.outputs[0], suffix="_product")
            take_over_name(required(product.producer()), node)
            replace(node, product)
            model.graph.remove(scaled, safe=True)
            changed = True
        return changed


def _gate(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Node] | None:
    """The x, g and product of x + x g."""
    if not is_standard(node, "Add") or not is_float32(node.outputs[0]):
        return None
    for x, product in (node.inputs, node.inputs[::-1]):
        maker = product.producer() if product is not None else None
        if x is None or x is product or product is None or sole_reader(product) is not node:
            continue
        if is_standard(maker, "Mul") and x in maker.inputs:
            gate = maker.inputs[1 if maker.inputs[0] is x else 0]
            if gate is not None and gate is not x and x.dtype == ir.DataType.FLOAT and _is_smaller(gate, x):
                return x, gate, maker
    return None


def _is_smaller(gate: ir.Value, x: ir.Value) -> bool:
    """Whether a gate broadcasts along an axis of x, and x along none of the gate's as far as is known."""
    if gate.shape is None or x.shape is None or len(gate.shape) != len(x.shape):
        return False
    pairs = list(zip(gate.shape, x.shape, strict=True))
    return any(a == 1 != b for a, b in pairs) and not any(b == 1 != a for a, b in pairs)
