"""Logits of the last token alone: of a prompt, only what comes next is of use.

logits = norm(h) W,  h [batch, sequence, hidden]     becomes     norm(h)[:, -1:] W,  [batch, 1, vocabulary]

A product of low rank beside it reads the same.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graph.constants import constant_of, mark_constants
from ..graph.matching import is_standard, opset_of
from ..graph.rewriting import SharedArrays, insert_before
from .base import GraphPass

OPSET = 10
"""From which Slice takes its places as inputs."""
_PRODUCTS = ("DynamicQuantizeMatMul", "MatMul", "MatMulMiniFloat", "MatMulNBits")
_MAPS = ("Add", "Cast", "Div", "Identity", "Mul", "Sub", "Tanh")


class LastLogits(GraphPass):
    """Cut what the widest product ahead of an output [batch, sequence, vocabulary] reads to the last of the sequence.

    Left with a reason: models without such an output, and products that something else reads, too.

    Attributes:
        output: The name of the output; None where nothing was changed.
    """

    def __init__(self) -> None:
        self.output: str | None = None

    def rewrite(self, model: ir.Model) -> bool:
        """Cut; whether anything changed."""
        mark_constants(model)
        found = [(value, nodes) for value in model.graph.outputs if (nodes := _products_ahead(value))]
        if opset_of(model) < OPSET or len(found) != 1:
            self.left[""] = "the model has no logits [batch, sequence, vocabulary] that a product gives"
            return False
        ((output, (product, *beside)),) = found
        x, arrays = product.inputs[0], SharedArrays(model.graph)
        assert x is not None
        places = (arrays.add("last", np.array([place], np.int64)) for place in (-1, np.iinfo(np.int64).max, 1))
        first = beside[0] if beside else product
        last = insert_before(first, "Slice", [x, *places], x, suffix="_last")
        last.shape = _cut(x)
        for reader in dict.fromkeys((first, product)):
            reader.replace_input_with(0, last)
        for node in beside:
            node.outputs[0].shape = _cut(node.outputs[0])
        value: ir.Value | None = product.outputs[0]
        while value is not None:
            value.shape = _cut(value)
            use = next((node for node, _ in value.uses()), None)
            value = use.outputs[0] if use is not None else None
        self.output = output.name
        return True


def _cut(value: ir.Value) -> ir.Shape | None:
    return None if value.shape is None else ir.Shape([value.shape[0], 1, *list(value.shape)[2:]])


def _products_ahead(output: ir.Value) -> list[ir.Node]:
    """The product that an output of three axes is a map of, number by number, where nobody else reads it.

    Behind it the two of a product of low rank beside it, where there is one.
    """
    value: ir.Value | None = output
    if output.shape is None or len(output.shape) != 3:
        return []
    while value is not None and len(value.uses()) == int(value is not output):
        node = value.producer()
        if node is None:
            return []
        found = [node] if node.op_type in _PRODUCTS else _compensated(node)
        if found:
            x = found[0].inputs[0]
            return found if x is not None and constant_of(x) is None else []
        if not is_standard(node, *_MAPS):
            return []
        varying = [each for each in node.inputs if each is not None and constant_of(each) is None]
        value = varying[0] if len(varying) == 1 else None
    return []


def _compensated(add: ir.Node) -> list[ir.Node]:
    """Products x W and, of (x A) B that is added to it, x A and the whole; nothing for any other node."""
    makers = [value.producer() if value is not None and len(value.uses()) == 1 else None for value in add.inputs]
    if not is_standard(add, "Add") or any(maker is None or maker.op_type not in _PRODUCTS for maker in makers):
        return []
    for product, outer in (makers, makers[::-1]):
        assert product is not None
        assert outer is not None
        narrow = outer.inputs[0]
        inner = narrow.producer() if narrow is not None and len(narrow.uses()) == 1 else None
        if inner is not None and inner.op_type in _PRODUCTS and inner.inputs[0] is product.inputs[0]:
            return [product, inner, outer]
    return []
