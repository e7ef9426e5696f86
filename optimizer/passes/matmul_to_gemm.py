"""A product of matrices with a bias behind it is a Gemm: x W + b = Gemm(x, W, b).

ONNX Runtime makes the same of it, but before it looks for codes of 8 bits, with the bias left in float, and then finds
no Gemm of 8 bits in it. The Gemm stands for the MatMul in recipes and reports.
"""

from __future__ import annotations

import onnx_ir as ir

from ..graph.constants import constant_of
from ..graph.matching import exact_rank, is_fixed, is_standard, sole_reader
from ..graph.rewriting import insert_before, replace, required, take_over_name
from .base import GraphPass
from .remove_unused import remove_unused


class MatMulToGemm(GraphPass):
    """Write MatMul and the Add of a constant bias behind it, of float32, as a Gemm.

    Cases: x is proven to have two axes, W is a constant matrix, the bias one number or one a column.

    Attributes:
        left: Each MatMul with a constant matrix and a bias that is left, by name, and why.
    """

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite the main graph; whether anything changed."""
        changed = False
        for node in list(model.graph):
            if is_standard(node, "MatMul") and is_fixed(node.inputs[1]):
                changed |= self._rewrite(node)
        if changed:
            remove_unused(model)
        return changed

    def _rewrite(self, node: ir.Node) -> bool:
        x, weight = node.inputs
        add = sole_reader(node.outputs[0])
        if not is_standard(add, "Add"):
            return False
        bias = add.inputs[1 if add.inputs[0] is node.outputs[0] else 0]
        if not is_fixed(bias):
            return False
        reason = _refuse(x, weight, bias)
        if reason is not None:
            self.left[node.name or ""] = reason
            return False
        product = insert_before(add, "Gemm", [x, weight, bias], add.outputs[0], suffix="_gemm")
        take_over_name(required(product.producer()), node)
        replace(add, product)
        return True


def _refuse(x: ir.Value | None, weight: ir.Value | None, bias: ir.Value | None) -> str | None:
    sizes, columns = _sizes(weight), _sizes(bias)
    if len(sizes) != 2:
        return "its weight is no matrix"
    if exact_rank(x) != 2:
        return "its input is not known to be a matrix"
    if len(columns) > 2 or any(size != 1 for size in columns[:-1]) or columns[-1:] not in ((), (1,), sizes[1:]):
        return "its bias is not one number a column"
    return None


def _sizes(value: ir.Value | None) -> tuple[int, ...]:
    tensor = constant_of(value)
    assert tensor is not None
    return tuple(tensor.shape.numpy())
