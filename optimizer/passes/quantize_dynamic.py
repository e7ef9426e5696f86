"""Products with constant weights compute on codes of 8 bits; activations are rounded as they come.

    x -> q, s, z          DynamicQuantizeLinear: x = s (q - z), q in uint8, from the least and largest of x
    W  = W8 t             int8, zero point 0, one scale t a column
    x W = s t ((q - z) W8)

spelled as MatMulInteger, Cast, Mul by the product of the scales: ONNX Runtime makes one node of it, with the bias that
is added behind, and packs W8. Products of the same x share its codes. An Attention becomes a QAttention, which does the
same with its three projections; it ends the process on a batch of none (ONNX Runtime 1.23 to 1.32 at least), and so is
kept from it.

DynamicQuantizeLinear is of opset 11. A model that cannot be raised so far gets ONNX Runtime's own
DynamicQuantizeMatMul, of any opset, which is what it makes of these nodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..graph.constants import constant_of
from ..graph.empty_batch import EmptyBatch, is_never_empty
from ..graph.matching import opset_of
from ..graph.rewriting import add_array, insert_before, replace, required, set_names
from ..graph.sharing import insert_behind
from ..planning.lazy_weight import LazyWeight
from ..planning.plan import Decision
from ..planning.plan_dynamic import MICROSOFT
from ..planning.stored_weights import StoredWeights
from .base import GraphPass

OPSET = 11
"""The first with DynamicQuantizeLinear."""
_AXES = 3
"""Of what an attention reads: [batch, sequence, hidden]."""
Codes = tuple[ir.Value, ir.Value, ir.Value]
"""Codes, scale and zero point of an activation."""


class QuantizeDynamic(GraphPass):
    """Rewrite the products that a plan takes.

    Cases: MatMul; Gemm with transA, transB, alpha (goes into the scales) and any C (added behind); Attention; weights
    that several nodes read (rounded once).

    Args:
        decisions: What becomes of nodes.
        reduce_range: Weights of 7 bits, for machines whose products saturate.
        search: Search the best scale of each column.
        stored: Where rounded weights go.
    """

    def __init__(
        self, decisions: Sequence[Decision], reduce_range: bool = False, search: bool = True,
        stored: StoredWeights | None = None,
    ) -> None:  # fmt: skip
        self._decisions = decisions
        self._reduce_range = reduce_range
        self._search = search
        self._stored = stored or StoredWeights()

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite; whether anything changed. Taken nodes that are in no graph any more are passed over."""
        self._model = model
        self._codes: dict[tuple[int, ir.Value], Codes] = {}
        self._empty = EmptyBatch(model.graph)
        taken = [d for d in self._decisions if d.taken and d.node.graph is not None]
        for decision in taken:
            if decision.op_type == "Attention":
                self._rewrite_attention(decision)
            else:
                self._rewrite_product(decision)
        return bool(taken)

    @property
    def weights(self) -> list[LazyWeight]:
        """The weights that are rounded, each once."""
        return self._stored.weights

    def _rewrite_product(self, decision: Decision) -> None:
        node = decision.node
        gemm = node.op_type == "Gemm"
        a = required(node.inputs[0])
        if gemm and node.attributes.get_int("transA", 0) == 1:
            a = insert_before(node, "Transpose", [a], None, suffix="_A", attributes={"perm": [1, 0]})
        y = self._product(node, a, *self._weight(decision, node.attributes.get_float("alpha", 1.0) if gemm else 1.0))
        c = node.inputs[2] if gemm and len(node.inputs) > 2 else None
        beta = node.attributes.get_float("beta", 1.0)
        if c is not None and beta != 0.0:
            y = insert_before(node, "Add", [y, self._scaled(node, c, beta)], node.outputs[0], suffix="_added")
        replace(node, y)

    def _product(self, node: ir.Node, a: ir.Value, codes: ir.Value, scales: ir.Value) -> ir.Value:
        if opset_of(self._model) < OPSET:
            self._model.graph.opset_imports.setdefault(MICROSOFT, 1)
            inputs = [a, codes, scales]
            like = node.outputs[0]
            y = insert_before(node, "DynamicQuantizeMatMul", inputs, like, domain=MICROSOFT, suffix="_product")
            required(y.producer()).name = node.name
            return y
        q, scale, zero_point = self._rounded(a, node)
        y = insert_before(node, "MatMulInteger", [q, codes, zero_point], None, suffix="_sums")
        product = y.producer()
        assert product is not None
        product.name = node.name
        y = insert_before(node, "Cast", [y], None, suffix="_float", attributes={"to": int(ir.DataType.FLOAT)})
        factors = insert_before(node, "Mul", [scale, scales], None, suffix="_factors")
        return insert_before(node, "Mul", [y, factors], node.outputs[0], suffix="_product")

    def _scaled(self, node: ir.Node, c: ir.Value, beta: float) -> ir.Value:
        if beta == 1.0:
            return c
        tensor = constant_of(c)
        if tensor is not None:
            return add_array(self._model.graph, f"{node.name}_beta_C", tensor.numpy() * np.float32(beta))
        factor = add_array(self._model.graph, f"{node.name}_beta", np.array(beta, np.float32))
        return insert_before(node, "Mul", [c, factor], None, suffix="_beta_C")

    def _rewrite_attention(self, decision: Decision) -> None:
        node = decision.node
        x = required(node.inputs[0])
        q, scale, zero_point = self._rounded(x, node)
        codes, scales = self._weight(decision)
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        axes = len(mask.shape) if mask is not None and mask.shape is not None else 0
        batch = required(mask) if axes == 2 and not is_never_empty(x) else x
        q = self._empty.filled(node, q, batch, _AXES)
        if axes:
            mask = self._empty.filled(node, required(mask), batch, axes)
        inputs = [q, codes, node.inputs[2], scale, scales, mask, zero_point]
        y = insert_before(node, "QAttention", inputs, node.outputs[0], domain=MICROSOFT, suffix="_int8")
        new = y.producer()
        assert new is not None
        new.name = node.name
        for name in ("num_heads", "unidirectional", "mask_filter_value"):
            if name in node.attributes:
                new.attributes[name] = node.attributes[name]
        self._model.graph.opset_imports.setdefault(MICROSOFT, 1)
        replace(node, self._empty.emptied(node, y, batch))

    def _rounded(self, x: ir.Value, reader: ir.Node) -> Codes:
        """The codes of an activation, made once for all readers in a graph."""
        graph = reader.graph
        assert isinstance(graph, ir.Graph)
        key = (id(graph), x)
        if key not in self._codes:
            node = ir.node("DynamicQuantizeLinear", [x], num_outputs=3)
            set_names(node, graph, f"{x.name}_round", *(f"{x.name}_{p}" for p in ("codes", "scale", "zero_point")))
            insert_behind(x, graph, node)
            self._codes[key] = (node.outputs[0], node.outputs[1], node.outputs[2])
        return self._codes[key]

    def _weight(self, decision: Decision, factor: float = 1.0) -> tuple[ir.Value, ir.Value]:
        return self._stored.int8(
            self._model.graph, decision, factor, search=self._search, reduce_range=self._reduce_range
        )
