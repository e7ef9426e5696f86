"""Products with rounded weights get a product of low rank beside them, which gives back a part of what rounding took.

    y = x W~      becomes      y = x W~ + (x A) B

A [K, r] and B [r, N] are integers of 8 bits with scales of their own, read as the form of the weight has it. What
multiplies W~ behind its codes, alpha of a Gemm, multiplies B.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import onnx_ir as ir

from ..graph.rewriting import insert_before, required, set_names
from ..graph.weight_form import factor_form
from ..planning.lazy_weight import LazyWeight
from ..planning.plan import Decision, Weight
from ..quantization.low_rank import LowRank
from ..quantization.quantized_weight import QuantizedWeight
from .base import GraphPass
from .quantize_matmul import Product, QuantizeMatMul


@dataclasses.dataclass(frozen=True)
class Added:
    """What is added beside a weight.

    Attributes:
        rank: Of it.
        read: Gives it.
    """

    rank: int
    read: Callable[[], LowRank]


class AddLowRank(GraphPass):
    """Add a product of low rank to those that read some weights.

    Cases: MatMulNBits, MatMulMiniFloat, MatMul and Gemm behind DequantizeLinear, the latter with transA and alpha; a
    weight with several readers (its factors are stored once); graphs inside nodes.

    Args:
        products: Nodes with rounded weights.
        added: What is added, by identity of the weight.
        form: How factors are written, as in `Blocks.form`.

    Attributes:
        sizes: Bytes of the factors, by identity of the weight.
    """

    def __init__(self, products: Sequence[Product], added: dict[tuple[object, ...], Added], form: str) -> None:
        self._products, self._added, self._form = products, added, form
        self._factors: dict[tuple[object, ...], tuple[Weight, Weight]] = {}
        self._decisions: list[Decision] = []
        self.sizes: dict[tuple[object, ...], int] = {}

    def rewrite(self, model: ir.Model) -> bool:
        """Add; whether anything changed."""
        taken = [product for product in self._products if product.weight.identity in self._added]
        for product in taken:
            self._add(product)
        quantize = QuantizeMatMul(self._decisions)
        quantize(model)
        makers = {id(weight.tensor): key for key, factors in self._factors.items() for weight in factors}
        for factor in quantize.weights:
            key = makers[id(factor.weight.tensor)]
            first = factor.weight is self._factors[key][0]
            factor.take(_part_of(self._added[key].read, first=first), "")
            self.sizes[key] = self.sizes.get(key, 0) + factor.stored
        return bool(taken)

    def _add(self, product: Product) -> None:
        node, weight, reader = product.node, product.weight, product.decision
        settings = required(reader.settings)
        x, y = required(node.inputs[0]), node.outputs[0]
        gemm = node.op_type == "Gemm"
        if gemm and node.attributes.get_int("transA", 0) == 1:
            x = insert_before(node, "Transpose", [x], None, suffix="_low_rank_A", attributes={"perm": [1, 0]})
        dtype = ir.DataType.FLOAT if required(reader.form).widened else weight.weight.dtype
        inner, outer = self._weights_of(weight, dtype)
        alpha = node.attributes.get_float("alpha", 1.0) if gemm else 1.0
        if not gemm and weight.scheme.takes_factors:
            alpha = weight.factor
        seen = insert_before(node, "MatMul", [x, inner.value], None, suffix="_low_rank_inner")
        seen.type = ir.TensorType(dtype)
        scaled = {"alpha": alpha} if alpha != 1 else None
        made = insert_before(
            node, "Gemm" if scaled else "MatMul", [seen, outer.value], y, suffix="_low_rank_outer", attributes=scaled
        )
        made.type = ir.TensorType(dtype)
        for value, factor in ((seen, inner), (made, outer)):
            form = factor_form(self._form, factor.K, dtype, settings.accuracy_level)
            self._decisions.append(
                Decision(required(value.producer()), reader.path, True, "", 0, factor, settings, form, "int8")
            )
        _put_behind(node, made)

    def _weights_of(self, weight: LazyWeight, dtype: ir.DataType) -> tuple[Weight, Weight]:
        """A and B, whose numbers nobody reads: what was rounded of them takes their place."""
        key = weight.identity
        if key not in self._factors:
            rank, read = self._added[key].rank, self._added[key].read
            made = []
            for first, name, shape in (
                (True, "inner", (weight.weight.K, rank)), (False, "outer", (rank, weight.weight.N)),
            ):  # fmt: skip
                values = _values_of(read, dtype, first=first)
                tensor = ir.LazyTensor(values, dtype, ir.Shape(shape), name=f"{weight.name}_low_rank_{name}")
                value = ir.Value(name=tensor.name, const_value=tensor, type=ir.TensorType(dtype), shape=tensor.shape)
                made.append(Weight(value, tensor, False, dtype))
            self._factors[key] = made[0], made[1]
        return self._factors[key]


def _part_of(read: Callable[[], LowRank], *, first: bool) -> Callable[[], QuantizedWeight]:
    return lambda: read().inner if first else read().outer


def _values_of(read: Callable[[], LowRank], dtype: ir.DataType, *, first: bool) -> Callable[[], ir.TensorProtocol]:
    part = _part_of(read, first=first)
    return lambda: ir.Tensor(part().values().astype(dtype.numpy()), dtype=dtype)


def _put_behind(node: ir.Node, added: ir.Value) -> None:
    """Let all that read what a node makes read it plus `added`, which has its place now, and its name as an output."""
    graph, y = required(node.graph), node.outputs[0]
    add = ir.node("Add", [added])
    set_names(add, graph, f"{node.name}_low_rank", f"{y.name}_low_rank")
    total = add.outputs[0]
    total.type, total.shape = y.type, y.shape
    if y.is_graph_output():
        y.name, total.name = total.name, y.name
    ir.convenience.replace_all_uses_with(y, total, replace_graph_outputs=True)
    add.resize_inputs(2)
    add.replace_input_with(0, y)
    add.replace_input_with(1, added)
    graph.insert_after(node, add)
