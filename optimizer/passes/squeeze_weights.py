"""The weight of a MatMul with leading axes of one is a matrix.

    A [.., M, K] W [1, .., 1, K, N]  =  A W [K, N]      where A has as many axes as W, or more

and else A gets the axes that are missing in front, which the result has from W.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graph.constants import constant_of, mark_constants
from ..graph.matching import exact_rank, is_standard, least_rank, opset_of
from ..graph.rewriting import add_array, insert_before, required
from ..planning.plan import nested_nodes
from .base import GraphPass


class SqueezeWeights(GraphPass):
    """Let each such MatMul read its weight through a Reshape, which is of a constant and so a constant itself.

    Left: weights that a caller may override, and operands whose number of axes is not known where it could be less.
    """

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite all graphs; whether anything changed."""
        mark_constants(model)
        found = [node for _, node in nested_nodes(model.graph, "") if is_standard(node, "MatMul") and _has_ones(node)]
        self._matrices: dict[tuple[ir.Graph, ir.Value], ir.Value] = {}
        changed = sum(self._squeeze(node, opset_of(model)) for node in found) > 0
        if changed:
            mark_constants(model)
        return changed

    def _squeeze(self, node: ir.Node, opset: int) -> bool:
        a, weight, graph = required(node.inputs[0]), required(node.inputs[1]), node.graph
        assert isinstance(graph, ir.Graph)
        axes, rank = len(required(constant_of(weight)).shape), exact_rank(a)
        if least_rank(a) < axes:
            if not rank:
                return False
            # A vector is a matrix of one row, and the result has no axis for that row.
            node.replace_input_with(0, _unsqueezed(node, a, axes - max(rank, 2), opset))
        if (graph, weight) not in self._matrices:
            self._matrices[graph, weight] = _matrix(graph, node, weight)
        node.replace_input_with(1, self._matrices[graph, weight])
        return True


def _has_ones(node: ir.Node) -> bool:
    value = node.inputs[1] if len(node.inputs) == 2 and node.inputs[0] is not None else None
    tensor = constant_of(value)
    return tensor is not None and len(tensor.shape) > 2 and all(size == 1 for size in tensor.shape.numpy()[:-2])


def _matrix(graph: ir.Graph, node: ir.Node, weight: ir.Value) -> ir.Value:
    """The matrix of a weight, made before its first reader in a graph."""
    tensor = required(constant_of(weight))
    sizes = tensor.shape.numpy()[-2:]
    shape = add_array(graph, f"{weight.name}_matrix_shape", np.array(sizes, np.int64))
    matrix = insert_before(node, "Reshape", [weight, shape], None, suffix="_matrix")
    matrix.name, matrix.type, matrix.shape = f"{weight.name}_matrix", ir.TensorType(tensor.dtype), ir.Shape(sizes)
    return matrix


def _unsqueezed(node: ir.Node, a: ir.Value, count: int, opset: int) -> ir.Value:
    axes = list(range(count))
    if opset < 13:
        wide = insert_before(node, "Unsqueeze", [a], None, suffix="_wide", attributes={"axes": axes})
    else:
        assert isinstance(node.graph, ir.Graph)
        inputs = [a, add_array(node.graph, f"{node.name}_wide_axes", np.array(axes, np.int64))]
        wide = insert_before(node, "Unsqueeze", inputs, None, suffix="_wide")
    wide.type = a.type
    wide.shape = ir.Shape([*([1] * count), *a.shape]) if a.shape is not None else None
    return wide
