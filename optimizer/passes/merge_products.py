"""Products that read the same tensor as one: queries, keys and values, or the gate of a perceptron and what it gates.

    x A, x B, x C   =   Split(x [A | B | C])

Rounded weights keep their codes and scales: each column has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import onnx_ir as ir

from ..graph.constants import release
from ..graph.matching import opset_of
from ..graph.product_columns import ColumnProduct, read_product
from ..graph.rewriting import add_initializer, required, set_names
from .base import GraphPass
from .remove_unused import remove_unused

OPSET = 13
"""From which Split takes its sizes as an input."""


class MergeProducts(GraphPass):
    """Merge products of the same tensor that are alike in all but their columns, in the main graph.

    Cases: MatMul with a bias behind it or without, com.microsoft::MatMulNBits. Left alone: results that are outputs of
    the model, weights that others read, and what rounds its weights in another way than the rest.

    Attributes:
        merged: The new products, and how many each stands for.
    """

    def __init__(self) -> None:
        self.merged: dict[ir.Node, int] = {}

    def rewrite(self, model: ir.Model) -> bool:
        """Merge; whether anything changed."""
        if opset_of(model) < OPSET:
            return False
        groups: dict[Hashable, list[ColumnProduct]] = {}
        for node in model.graph:
            product = read_product(node)
            if product is not None and not product.result.is_graph_output():
                groups.setdefault(product.kind, []).append(product)
        for group in groups.values():
            if len(group) > 1:
                self._merge(model.graph, group)
        if self.merged:
            remove_unused(model)
            model.graph.sort()
        return bool(self.merged)

    def _merge(self, graph: ir.Graph, group: Sequence[ColumnProduct]) -> None:
        first = group[0].node
        name = f"{first.name}_merged"
        inputs: list[ir.Value | None] = [first.inputs[0]]
        for place in range(1, max(len(product.node.inputs) for product in group)):
            has = any(place in product.constants() for product in group)
            inputs.append(add_initializer(graph, f"{name}_{place}", _side_by_side(group, place)) if has else None)
        attributes = list(first.attributes.values())
        node = ir.Node(first.domain, first.op_type, inputs, attributes, overload=first.overload)
        columns = sum(product.columns for product in group)
        if "N" in node.attributes:
            node.attributes["N"] = ir.AttrInt64("N", columns)
        set_names(node, graph, name, f"{name}_output")
        graph.insert_before(first, node)
        whole = self._with_bias(graph, first, node, group)
        sizes = add_initializer(graph, f"{name}_sizes", ir.tensor([product.columns for product in group]))
        split = ir.node("Split", [whole, sizes], attributes={"axis": -1}, num_outputs=len(group))
        set_names(split, graph, f"{name}_split", *(f"{name}_part" for _ in group))
        graph.insert_before(first, split)
        for product, part in zip(group, split.outputs, strict=True):
            old = product.result
            ir.convenience.replace_all_uses_with(old, part)
            part.type, part.shape = old.type, old.shape
        lead = group[0].result.shape
        for value in {node.outputs[0], whole}:
            value.type = group[0].result.type
            value.shape = None if lead is None else ir.Shape([*lead[:-1], columns])
        self.merged[node] = len(group)

    def _with_bias(self, graph: ir.Graph, before: ir.Node, node: ir.Node, group: Sequence[ColumnProduct]) -> ir.Value:
        if all(product.add is None for product in group):
            return node.outputs[0]
        vectors = [
            np.zeros(product.columns, np.float32) if (added := product.added()) is None else added.numpy()
            for product in group
        ]
        bias = add_initializer(graph, f"{node.name}_bias", ir.tensor(np.concatenate(vectors)))
        add = ir.node("Add", [node.outputs[0], bias])
        set_names(add, graph, f"{node.name}_add", f"{node.name}_add_output")
        graph.insert_before(before, add)
        return add.outputs[0]


def _side_by_side(group: Sequence[ColumnProduct], place: int) -> ir.TensorProtocol:
    """An operand of all products, put together when it is read; zeros where a product has no bias."""
    axis = group[0].operands[place]
    tensors = [product.constants().get(place) for product in group]
    known = next(tensor for tensor in tensors if tensor is not None)
    shape = list(known.shape.numpy())
    shape[axis] = sum(product.columns for product in group)

    def evaluate() -> ir.TensorProtocol:
        parts = []
        for product, tensor in zip(group, tensors, strict=True):
            parts.append(np.zeros(product.columns, np.float32) if tensor is None else np.array(tensor.numpy()))
            if tensor is not None:
                release(tensor)
        return ir.Tensor(np.concatenate(parts, axis), dtype=known.dtype)

    return ir.LazyTensor(evaluate, known.dtype, ir.Shape(shape))


def reordered(graph: ir.Graph, product: ColumnProduct, order: np.ndarray) -> None:
    """Let the columns of a product stand in another order."""

    def taken(tensor: ir.TensorProtocol, axis: int) -> Callable[[], ir.TensorProtocol]:
        def evaluate() -> ir.TensorProtocol:
            array = np.take(tensor.numpy(), order, axis)
            release(tensor)
            return ir.Tensor(array, dtype=tensor.dtype)

        return evaluate

    constants = [
        (product.node, place, tensor, product.operands[place]) for place, tensor in product.constants().items()
    ]
    if product.add is not None:
        place = 1 if product.add.inputs[0] is product.node.outputs[0] else 0
        constants.append((product.add, place, required(product.added()), 0))
    for node, place, tensor, axis in constants:
        lazy = ir.LazyTensor(taken(tensor, axis), tensor.dtype, ir.Shape(tensor.shape.numpy()))
        node.replace_input_with(place, add_initializer(graph, f"{required(node.inputs[place]).name}_ordered", lazy))
