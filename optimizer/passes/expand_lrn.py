"""Normalization over neighbouring channels, in operators that ONNX Runtime has fast.

    LRN(x) = x / (bias + alpha m)^beta,    m = mean of x^2 over `size` channels, those beyond the ends being zero

(Krizhevsky, Sutskever and Hinton 2012, section 3.3). The mean is an AveragePool along the channels, which become an
axis of space, and the power 3/4 that all networks use two square roots. ONNX Runtime's LRN works on one number at a
time and was measured to take half of an INT8 Inception v1; its parts were six times as fast.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graph.element_type import is_float32
from ..graph.matching import exact_rank, is_standard, opset_of
from ..graph.rewriting import add_array, insert_before, replace, required, take_over_name
from .base import GraphPass

_AXES_AS_INPUT = 13  # the opset from which Unsqueeze and Squeeze have them so


class ExpandLrn(GraphPass):
    """Write LRN of float32 with four axes as AveragePool and arithmetic.

    Left: other types and ranks, even sizes, which ONNX Runtime does not take, and models older than opset 13.
    """

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite the main graph; whether anything changed."""
        if opset_of(model) < _AXES_AS_INPUT:
            return False
        found = [node for node in model.graph if _is_taken(node)]
        for node in found:
            _expand(model.graph, node)
        return bool(found)


def _is_taken(node: ir.Node) -> bool:
    return (
        is_standard(node, "LRN")
        and is_float32(node.outputs[0])
        and exact_rank(node.inputs[0]) in (None, 4)  # ONNX Runtime has no other
        and node.attributes.get_int("size", 0) % 2 == 1
    )


def _expand(graph: ir.Graph, node: ir.Node) -> None:
    x, like = node.inputs[0], node.outputs[0]
    constant = {
        name: add_array(graph, f"{node.name}_{name}", np.float32(node.attributes.get_float(name, default)))
        for name, default in (("alpha", 1e-4), ("bias", 1.0))
    }
    squares = insert_before(node, "Mul", [x, x], like, suffix="_squares")
    mean = _mean_of_neighbours(graph, node, squares, node.attributes.get_int("size", 0))
    mean = insert_before(node, "Mul", [mean, constant["alpha"]], like, suffix="_scaled")
    base = insert_before(node, "Add", [mean, constant["bias"]], like, suffix="_base")
    beta = node.attributes.get_float("beta", 0.75)
    if beta == 0.75:
        root = insert_before(node, "Sqrt", [base], like, suffix="_root")
        fourth = insert_before(node, "Sqrt", [root], like, suffix="_fourth_root")
        power = insert_before(node, "Mul", [root, fourth], like, suffix="_power")
    else:
        exponent = add_array(graph, f"{node.name}_beta", np.float32(beta))
        power = insert_before(node, "Pow", [base, exponent], like, suffix="_power")
    quotient = insert_before(node, "Div", [x, power], like, suffix="_quotient")
    take_over_name(required(quotient.producer()), node)
    replace(node, quotient)


def _mean_of_neighbours(graph: ir.Graph, node: ir.Node, squares: ir.Value, size: int) -> ir.Value:
    """Sums over channels c - (size - 1) / 2 to c + (size - 1) / 2, by `size` at the ends, too."""
    axis = add_array(graph, f"{node.name}_axis", np.array([1], np.int64))
    apart = insert_before(node, "Unsqueeze", [squares, axis], None, suffix="_apart")
    margin = [size // 2, 0, 0]
    pooled = insert_before(
        node, "AveragePool", [apart], None, suffix="_pooled",
        attributes={
            "kernel_shape": [size, 1, 1], "pads": margin * 2, "count_include_pad": 1,
        },
    )  # fmt: skip
    return insert_before(node, "Squeeze", [pooled, axis], node.outputs[0], suffix="_mean")
