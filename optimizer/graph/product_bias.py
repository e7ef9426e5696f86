"""What is added to a product with a constant weight: a constant vector that it can take in, or something else.

MatMul(x, W) + b, and Gemm(x, W, C) = alpha x W + beta C.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .constants import constant_of
from .rewriting import add_array, insert_before


def find_bias(graph: ir.Graph, node: ir.Node, N: int) -> tuple[ir.Node, ir.Value | None, ir.Value | None]:
    """What is added to a product of N columns.

    Args:
        graph: Where a bias goes that has to be made.
        node: A MatMul or a Gemm.
        N: Its columns.

    Returns:
        The last node of the product, the bias [N] it can take, and a C of a Gemm that must be added apart.
    """
    if node.op_type == "Gemm":
        c = node.inputs[2] if len(node.inputs) > 2 else None
        beta = node.attributes.get_float("beta", 1.0)
        if c is None or beta == 0.0:
            return node, None, None
        bias = _as_bias(graph, node, c, N, beta)
        return (node, bias, None) if bias is not None else (node, None, c)
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) != 1 or output.is_graph_output():
        return node, None, None
    add = uses[0].node
    if add.op_type != "Add" or add.domain not in ("", "ai.onnx") or add.graph is not node.graph:
        return node, None, None
    other = add.inputs[1 - uses[0].idx]
    bias = _as_bias(graph, node, other, N, 1.0) if other is not None else None
    return (add, bias, None) if bias is not None else (node, None, None)


def _as_bias(graph: ir.Graph, node: ir.Node, c: ir.Value, N: int, beta: float) -> ir.Value | None:
    """A constant of one value a column, times beta, as [N]."""
    tensor = constant_of(c)
    if tensor is None or tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return None
    shape = list(tensor.shape.numpy())
    if shape == [N] and beta == 1.0 and c.is_initializer():
        return c
    columns = shape[-1:] in ([N], [1], []) and len(shape) <= (2 if node.op_type == "Gemm" else 1)
    if not columns or any(dim != 1 for dim in shape[:-1]):
        return None
    if node.op_type == "MatMul" and shape != [N]:
        return None
    array = tensor.numpy()
    values = np.broadcast_to(array.reshape(-1) * array.dtype.type(beta), (N,))
    return add_array(graph, f"{node.name}_bias", np.ascontiguousarray(values))


def add_scaled(graph: ir.Graph, node: ir.Node, y: ir.Value, c: ir.Value) -> ir.Value:
    """A product y plus beta C, before the Gemm that has them."""
    beta = node.attributes.get_float("beta", 1.0)
    output = node.outputs[0]
    if beta != 1.0:
        assert y.producer() is not None
        kind = (constant.dtype if (constant := constant_of(c)) is not None else c.dtype) or ir.DataType.FLOAT
        factor = add_array(graph, f"{node.name}_beta", np.array(beta, kind.numpy()))
        c = insert_before(node, "Mul", [c, factor], None, suffix="_beta_C")
    return insert_before(node, "Add", [y, c], output, suffix="_add")
