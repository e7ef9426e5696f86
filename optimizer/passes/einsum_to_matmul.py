"""An Einsum of a constant is a product with a matrix.

Each label of a sum over two operands x and W is in two of three places: o in x and in the result, c in x and in W,
n in W and in the result. With those of each kind side by side,

    y[o, n] = sum over c of x[o, c] W[c, n],    so    y = reshape(reshape(x, [o, |c|]) reshape(W, [|c|, |n|]), [o, n]),

and a Transpose where x, W or y has its labels in another order. That is how Keras and JAX write attention and dense
layers.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir

from ..graph.constants import constant_of, mark_constants
from ..graph.matching import exact_rank, is_standard
from ..graph.rewriting import add_array, insert_before, replace, required
from ..planning.plan import nested_nodes
from .base import GraphPass

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_ELLIPSIS = "..."
_UNNAMED = 0xE000
"""Code points for the axes that an ellipsis stands for: none of them is a letter."""


class EinsumToMatMul(GraphPass):
    """Write every Einsum of a constant as a MatMul, which has its name, in all graphs.

    Cases: either operand is the constant; an ellipsis in the other; several axes that are summed over, or that come
    from the constant; axes in any order; a result whose labels are not written out. Left, with the reason: a label in
    all three places or in one, one twice in an operand, and an ellipsis of unknown length.
    """

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite; whether anything changed."""
        sums = [node for _, node in nested_nodes(model.graph, "") if is_standard(node, "Einsum")]
        if sums:
            mark_constants(model)
        changed = False
        for node in sums:
            if len(node.inputs) != 2:
                continue
            which = next((at for at in (1, 0) if constant_of(node.inputs[at]) is not None), None)
            if which is None or required(constant_of(node.inputs[which])).dtype not in _FLOATS:
                continue
            found = _labels(node, which)
            if isinstance(found, str):
                self.left[node.name or ""] = found
                continue
            _write(node, which, found)
            changed = True
        if changed:
            mark_constants(model)
        return changed


@dataclasses.dataclass(frozen=True)
class _Labels:
    """Of the axes of x, of W and of the result."""

    x: str
    weight: str
    result: str

    @property
    def outer(self) -> str:
        """o, in the order of x."""
        return "".join(label for label in self.x if label in self.result)

    @property
    def summed(self) -> str:
        """c, in the order of x."""
        return "".join(label for label in self.x if label in self.weight)

    @property
    def columns(self) -> str:
        """n, in the order of the result."""
        return "".join(label for label in self.result if label in self.weight)


def _labels(node: ir.Node, which: int) -> _Labels | str:
    """Those of an Einsum whose operand `which` is the constant, or why it is no product with a matrix."""
    left, arrow, result = node.attributes.get_string("equation", "").replace(" ", "").partition("->")
    terms = left.split(",")
    x, weight = terms[1 - which], terms[which]
    if not arrow:
        result = "".join(sorted(label for label in {*left} - {*",."} if left.count(label) == 1))
        result = (_ELLIPSIS if _ELLIPSIS in left else "") + result
    if _ELLIPSIS in weight:
        return "an ellipsis stands for axes of the constant"
    if _ELLIPSIS in x:
        rank = exact_rank(node.inputs[1 - which])
        if not rank:
            return "an ellipsis stands for a number of axes that is not known"
        axes = "".join(chr(_UNNAMED + axis) for axis in range(rank - len(x.replace(_ELLIPSIS, ""))))
        x, result = x.replace(_ELLIPSIS, axes), result.replace(_ELLIPSIS, axes)
    if any(len(set(term)) < len(term) for term in (x, weight, result)):
        return "a label stands for two axes of one operand"
    found = _Labels(x, weight, result)
    pairs = (found.outer, found.summed, found.columns)
    if not all(pairs) or any(sum(label in term for term in (x, weight, result)) != 2 for label in x + weight + result):
        return "not every label is in two of both operands and the result"
    return found


def _write(node: ir.Node, which: int, labels: _Labels) -> None:
    x, weight, result = required(node.inputs[1 - which]), required(node.inputs[which]), node.outputs[0]
    sizes = dict(zip(labels.weight, required(constant_of(weight)).shape.numpy(), strict=True))
    outer, summed, columns = labels.outer, labels.summed, labels.columns
    known = dict(zip(labels.x, x.shape, strict=True)) if x.shape is not None else {}
    K, N = (math.prod(sizes[label] for label in some) for some in (summed, columns))

    def give(value: ir.Value, lead: str, *tail: int) -> ir.Value:
        """A value its type, and the shape that is known."""
        value.type = result.type
        value.shape = ir.Shape([*(known[label] for label in lead), *tail]) if known or not lead else None
        return value

    rows = _turned(node, x, labels.x, outer + summed, "_rows")
    if len(summed) > 1:
        rows = give(_reshaped(node, rows, [*([0] * len(outer)), K], "_rows_flat"), outer, K)
    matrix = _turned(node, weight, labels.weight, summed + columns, "_matrix")
    if len(summed) > 1 or len(columns) > 1:
        matrix = give(_reshaped(node, matrix, [K, N], "_matrix_flat"), "", K, N)
    product = made = give(insert_before(node, "MatMul", [rows, matrix], None, suffix="_product"), outer, N)
    if len(columns) > 1:
        tail = [sizes[label] for label in columns]
        made = give(_reshaped(node, made, [*([0] * len(outer)), *tail], "_apart"), outer, *tail)
    made = _turned(node, made, outer + columns, labels.result, "_turned")
    required(product.producer()).name = node.name
    made.type, made.shape = result.type, result.shape
    replace(node, made)


def _turned(node: ir.Node, value: ir.Value, have: str, want: str, suffix: str) -> ir.Value:
    """A value with its axes in another order."""
    if have == want:
        return value
    order = [have.index(label) for label in want]
    turned = insert_before(node, "Transpose", [value], None, suffix=suffix, attributes={"perm": order})
    turned.type = value.type
    if value.shape is not None:
        turned.shape = ir.Shape([value.shape[axis] for axis in order])
    return turned


def _reshaped(node: ir.Node, value: ir.Value, sizes: list[int], suffix: str) -> ir.Value:
    """A value of other sizes, of which 0 is what it has there."""
    assert isinstance(node.graph, ir.Graph)
    shape = add_array(node.graph, f"{node.name}{suffix}_shape", np.array(sizes, np.int64))
    return insert_before(node, "Reshape", [value, shape], None, suffix=suffix)
