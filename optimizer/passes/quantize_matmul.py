"""MatMul and Gemm with a constant weight become products with a low-bit weight.

    MatMul:  A W                          = MatMulNBits(A, codes, scales, zero_points)
    Gemm:    alpha op(A) op(W) + beta C   = MatMulNBits(op(A), codes, alpha scales, zero_points) + beta C

W = (number of the code - zero_points) * scales in blocks along K, so alpha moves into the scales; where scales cannot
take any factor it moves into W before that is rounded. MatMulMiniFloat is the same for codes that are no integers. A
bias that is a constant vector, Gemm's C or an Add that follows, moves into the node. In the form "qdq" the node stays
and reads its weight [K, N] through a DequantizeLinear, in blocks along axis 0 or with a scale a column.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
from onnxpress.custom_ops import functions

from ..graph.product_bias import add_scaled, find_bias
from ..graph.rewriting import insert_before, insert_cast, replace, required
from ..graph.weight_form import WeightForm
from ..model_io.names import names_of
from ..planning.lazy_weight import LazyWeight
from ..planning.plan import Decision
from ..planning.stored_weights import StoredWeights
from .base import GraphPass
from .declare_functions import add_function


@dataclasses.dataclass(frozen=True)
class Product:
    """A node that multiplies by a rounded weight.

    Attributes:
        node: It, as it is now.
        weight: The weight.
        decision: On the node that it was.
    """

    node: ir.Node
    weight: LazyWeight
    decision: Decision


class QuantizeMatMul(GraphPass):
    """Rewrite the MatMul and Gemm nodes that a plan takes.

    Cases: MatMul; Gemm with transA, transB, alpha, and a C that is constant and one value a column (bias), other
    (Mul and Add), or absent; a shared weight (quantized once a scheme); float16 activations (float16 scales).

    Args:
        decisions: What becomes of nodes.

    Attributes:
        warnings: What the user should know.
        products: The nodes that were rewritten.
    """

    def __init__(self, decisions: list[Decision]) -> None:
        self._decisions = decisions
        self._stored = StoredWeights()
        self.warnings: list[str] = []
        self.products: list[Product] = []

    @property
    def weights(self) -> list[LazyWeight]:
        """The weights that were rounded, each once."""
        return self._stored.weights

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite; whether anything changed."""
        taken = [d for d in self._decisions if d.taken and d.op_type in ("MatMul", "Gemm")]
        for decision in taken:
            # New constants go to the outermost graph, which subgraphs see; but ONNX Runtime's fusion of
            # DequantizeLinear looks for them only in the graph of the node.
            self._graph = model.graph
            form = required(decision.form)
            if form.op_type == "DequantizeLinear" and isinstance(decision.node.graph, ir.Graph):
                self._graph = decision.node.graph
                self._dequantize(decision, form)
                model.ir_version = max(model.ir_version, form.ir_version)
            else:
                self._replace(model, decision, form)
        return bool(taken)

    def _warn(self, text: str) -> None:
        if text and text not in self.warnings:
            self.warnings.append(text)

    def _replace(self, model: ir.Model, decision: Decision, form: WeightForm) -> None:
        node, settings, weight = decision.node, decision.settings, decision.weight
        assert settings is not None
        assert weight is not None
        gemm = node.op_type == "Gemm"
        lazy = self._stored.weight(decision, form.scheme, node.attributes.get_float("alpha", 1.0) if gemm else 1.0)

        a = node.inputs[0]
        assert a is not None
        if gemm and node.attributes.get_int("transA", 0) == 1:
            a = insert_before(node, "Transpose", [a], None, suffix="_A", attributes={"perm": [1, 0]})
            a.type = ir.TensorType(weight.dtype)
        last, bias, added = find_bias(self._graph, node, weight.N)
        operands = self._operands(node, lazy, form)
        if form.widened:
            a = insert_cast(node, a, ir.DataType.FLOAT, "_A_float")
            bias = bias and insert_cast(node, bias, ir.DataType.FLOAT, "_bias_float")
        inputs: list[ir.Value | None] = [a, *operands, bias]
        while inputs[-1] is None:
            inputs.pop()
        attributes: dict[str, int | str | list[int]] = {
            "K": weight.K,
            "N": weight.N,
            "block_size": form.scheme.block_size,
            "accuracy_level": settings.accuracy_level,
        }
        attributes |= {"bits": form.scheme.bits} if form.scheme.integer else {"format": form.scheme.format}
        y = insert_before(
            last, form.op_type, inputs, last.outputs[0], domain=form.domain,
            overload=self._function(model, lazy, form, bias is not None).overload if form.ours else "",
            suffix="", attributes=attributes,
        )  # fmt: skip
        product = y.producer()
        assert product is not None
        product.name = node.name
        self.products.append(Product(product, lazy, decision))
        model.graph.opset_imports.setdefault(product.domain, 1)
        if form.widened or added is not None:
            y.name = names_of(self._graph).value(f"{last.outputs[0].name}_product")
        if form.widened:
            y.type = ir.TensorType(ir.DataType.FLOAT)
            y = insert_cast(last, y, weight.dtype, "_half")
        if added is not None:
            y = add_scaled(self._graph, node, y, added)
        replace(last, y)
        if last is not node:
            assert node.graph is not None
            node.graph.remove(node, safe=True)

    def _operands(self, node: ir.Node, lazy: LazyWeight, form: WeightForm) -> list[ir.Value | None]:
        """What the operator takes between A and the bias."""
        packed = self._stored.part(self._graph, lazy, "packed", ir.DataType.UINT8, "codes")
        scales = self._stored.scales(self._graph, node, lazy, form, "scales")
        if not form.ours and scales.producer() is not None:
            packed = _behind_identity(node, packed)
        if form.op_type == "MatMulMiniFloat":
            return [packed, scales]
        points = None
        if not form.scheme.symmetric:
            points = self._stored.part(self._graph, lazy, "zero_points", ir.DataType.UINT8, "zero_points")
        return [packed, scales, points, *([] if form.ours else [None])]

    def _function(self, model: ir.Model, lazy: LazyWeight, form: WeightForm, bias: bool) -> ir.Function:
        """The meaning of the node in standard ops, added to the model once a variant."""
        scheme, weight, opset = form.scheme, lazy.weight, model.graph.opset_imports[""]
        if scheme.integer:
            function = functions.matmul_nbits(
                bits=scheme.bits, K=weight.K, N=weight.N, block_size=scheme.block_size, activation=weight.dtype,
                scale=form.scales, zero_points=not scheme.symmetric, bias=bias, opset=opset,
            )  # fmt: skip
        else:
            function = functions.matmul_minifloat(
                format=scheme.format, K=weight.K, N=weight.N, block_size=scheme.block_size,
                activation=weight.dtype, scale=form.scales, bias=bias, opset=opset,
            )  # fmt: skip
        return add_function(model, function)

    def _dequantize(self, decision: Decision, form: WeightForm) -> None:
        node, weight, scheme = decision.node, decision.weight, form.scheme
        assert weight is not None
        lazy = self._stored.weight(decision, scheme)
        self._warn(form.warning)
        part = "scales_kn" if scheme.block_size else "scales_n" if scheme.per_channel else "scale"
        inputs = [
            self._stored.part(self._graph, lazy, "codes", form.codes, "codes"),
            self._stored.scales(self._graph, node, lazy, form, part),
        ]
        if not scheme.symmetric:
            inputs.append(self._stored.part(self._graph, lazy, "zero_points_kn", form.codes, "zero_points"))
        dequantized = insert_before(
            node, "DequantizeLinear", inputs, None, suffix="_weight",
            attributes={"axis": 0, "block_size": scheme.block_size} if scheme.block_size else {"axis": 1},
        )  # fmt: skip
        dequantized.type = ir.TensorType(weight.dtype)
        dequantized.shape = ir.Shape([weight.K, weight.N])
        node.replace_input_with(1, dequantized)
        self.products.append(Product(node, lazy, decision))
        if node.op_type == "Gemm":
            node.attributes["transB"] = ir.AttrInt64("transB", 0)


def _behind_identity(node: ir.Node, codes: ir.Value) -> ir.Value:
    """Codes that are a constant when the scales behind a Cast are one: where ONNX Runtime folds nothing, neither is.

    At accuracy level 4 its kernel packs constant codes together with the scales, and takes scales that are no constant
    yet for zeros. Codes that are none it decodes at each run, with the scales of that run.
    """
    return insert_before(node, "Identity", [codes], codes, suffix="_codes")
