"""Logits of the last token alone: of a prompt, only what comes next is of use.

logits = norm(h) W,  h [batch, sequence, hidden]     becomes     norm(h)[:, last] W,  [batch, 1, vocabulary]

where the last token of a row is that which its mask counts last, if the model has a mask [batch, past + sequence]:
texts of a batch may be padded on either side. A product of low rank beside it reads the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..graph.constants import constant_of, mark_constants
from ..graph.matching import is_standard, opset_of
from ..graph.rewriting import SharedArrays, insert_before, insert_cast, required
from .base import GraphPass

OPSET = 10
"""From which Slice takes its places as inputs."""
_MASK_OPSET = 13
"""From which Unsqueeze does; ArgMax tells the last of several from 12 on, when GatherND got its batch axes."""
_COUNTED = (ir.DataType.BOOL, ir.DataType.INT32, ir.DataType.INT64)
_PRODUCTS = ("DynamicQuantizeMatMul", "MatMul", "MatMulMiniFloat", "MatMulNBits")
_END = np.iinfo(np.int64).max
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
        x = required(product.inputs[0])
        first = beside[0] if beside else product
        mask = _mask(model) if opset_of(model) >= _MASK_OPSET else None
        last = _Cut(model.graph, first).to_last(x) if mask is None else _Cut(model.graph, first).to_counted(x, mask)
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


class _Cut:
    """Nodes that cut the input of a node, placed before it."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self._arrays, self._node = SharedArrays(graph), node

    def to_last(self, x: ir.Value) -> ir.Value:
        """The last of the second axis."""
        return self._slice(x, -1, _END, 1, "_last")

    def to_counted(self, x: ir.Value, mask: ir.Value) -> ir.Value:
        """What the mask counts last of the second axis, which it ends with; the last where it counts nothing of it."""
        sequence = self._slice(self._op("Shape", [x], "_shape"), 1, 2, 0, "_sequence")
        begin = self._op("Neg", [sequence], "_begin")
        new = self._op("Slice", [mask, begin, self._number(_END), self._number(1)], "_new_mask", mask)
        counted = insert_cast(self._node, new, ir.DataType.INT32, "_counted")  # ArgMax takes no truth values
        place = insert_before(
            self._node, "ArgMax", [counted], None, suffix="_place", attributes={"axis": 1, "select_last_index": 1}
        )
        row = insert_before(self._node, "GatherND", [x, place], x, suffix="_row", attributes={"batch_dims": 1})
        row.shape = None  # an axis less
        return self._op("Unsqueeze", [row, self._number(1)], "_last", x)

    def _slice(self, x: ir.Value, begin: int, end: int, axis: int, suffix: str) -> ir.Value:
        return self._op("Slice", [x, *map(self._number, (begin, end, axis))], suffix, x)

    def _op(self, op_type: str, inputs: Sequence[ir.Value], suffix: str, like: ir.Value | None = None) -> ir.Value:
        made = insert_before(self._node, op_type, inputs, like, suffix=suffix)
        made.shape = None
        return made

    def _number(self, number: int) -> ir.Value:
        return self._arrays.add("last", np.array([number], np.int64))


def _mask(model: ir.Model) -> ir.Value | None:
    """The input attention_mask, [batch, past + sequence]; not that of an encoder beside a decoder's own tokens.

    All other inputs of two axes, such as tokens and their positions, are [batch, sequence] then.
    """
    found = {value.name: value for value in model.graph.inputs if value.dtype in _COUNTED and _rank(value) == 2}
    mask = found.pop("attention_mask", None)
    return mask if len({required(value.shape)[1] for value in found.values()}) == 1 else None


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


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
