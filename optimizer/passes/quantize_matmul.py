"""MatMul and Gemm with a constant weight become products with a low-bit weight.

    MatMul:  A W                          = MatMulNBits(A, codes, scales, zero_points)
    Gemm:    alpha op(A) op(W) + beta C   = MatMulNBits(op(A), codes, alpha scales, zero_points) + beta C

W = (codes - zero_points) * scales in blocks along K, so alpha moves into the scales. A bias that is a constant vector,
Gemm's C or an Add that follows, moves into the node. In the form "qdq" the node stays and reads its weight through a
blocked DequantizeLinear [K, N] along axis 0.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
from onnxpress.custom_ops import functions

from ..quantization.schemes import WeightScheme
from ..recipe import Recipe
from .lazy_weight import LazyWeight
from .plan import Decision
from .product_bias import add_scaled, find_bias
from .rewriting import add_initializer, insert_before, replace

MICROSOFT = "com.microsoft"
_MICROSOFT_BITS = (2, 4, 8)


def needs_our_domain(recipe: Recipe, bits: int) -> bool:
    """Whether a weight of these bits becomes a node of domain `onnxpress`."""
    return recipe.form == "onnxpress" or (recipe.form == "qoperator" and bits not in _MICROSOFT_BITS)


class QuantizeMatMul:
    """Rewrite the MatMul and Gemm nodes that a plan takes.

    Cases: MatMul; Gemm with transA, transB, alpha, and a C that is constant and one value a column (bias), other
    (Mul and Add), or absent; a shared weight (quantized once a scheme); float16 activations (float16 scales).
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._weights: dict[tuple[object, ...], LazyWeight] = {}
        self._values: dict[tuple[object, ...], ir.Value] = {}
        self.warnings: list[str] = []

    @property
    def weights(self) -> list[LazyWeight]:
        """The weights that were rounded, each once."""
        return list(self._weights.values())

    def __call__(self, model: ir.Model, decisions: list[Decision]) -> bool:
        """Rewrite; whether anything changed."""
        taken = [d for d in decisions if d.taken and d.op_type in ("MatMul", "Gemm")]
        for decision in taken:
            # New constants go to the outermost graph, which subgraphs see; but ONNX Runtime's fusion of
            # DequantizeLinear looks for them only in the graph of the node.
            self._graph = model.graph
            if self._recipe.form == "qdq" and isinstance(decision.node.graph, ir.Graph):
                self._graph = decision.node.graph
                self._rewrite_qdq(decision)
            else:
                self._rewrite_qoperator(model, decision)
        return bool(taken)

    def _lazy(self, decision: Decision, factor: float) -> LazyWeight:
        assert decision.weight is not None
        assert decision.settings is not None
        weight, scheme = decision.weight, decision.settings.weight
        if weight.dtype == ir.DataType.FLOAT16 and not self._ours(scheme):
            scheme = dataclasses.replace(scheme, scale_type="float16")  # both ops tie scales to the type of A
        key = (id(weight.tensor), weight.transposed, scheme, factor)
        if key not in self._weights:
            self._weights[key] = LazyWeight(weight.value.name or "weight", weight, scheme, factor)
        self._weights[key].nodes.append(decision.node.name or "")
        return self._weights[key]

    def _ours(self, scheme: WeightScheme) -> bool:
        return needs_our_domain(self._recipe, scheme.bits)

    def _part(self, lazy: LazyWeight, part: str, dtype: ir.DataType | None = None, suffix: str = "") -> ir.Value:
        """The initializer of a part, made once for all nodes that share it."""
        key = (id(self._graph), id(lazy), part)
        if key not in self._values:
            name = f"{lazy.name}_int{lazy.scheme.bits}{suffix or '_' + part}"
            self._values[key] = add_initializer(self._graph, name, lazy.tensor(part, dtype))
        return self._values[key]

    def _scales(self, node: ir.Node, lazy: LazyWeight, part: str) -> ir.Value:
        """Scales in the type of A: ONNX Runtime folds the cast when it loads the model."""
        weight_type = lazy.weight.dtype
        stored = ir.DataType.FLOAT16 if lazy.scheme.scale_type == "float16" else ir.DataType.FLOAT
        scales = self._part(lazy, part, stored, "_scales")
        if stored == weight_type or self._ours(lazy.scheme):
            return scales
        cast = insert_before(node, "Cast", [scales], None, suffix="_scales", attributes={"to": int(weight_type)})
        cast.type = ir.TensorType(weight_type)
        cast.shape = scales.shape
        return cast

    def _rewrite_qoperator(self, model: ir.Model, decision: Decision) -> None:
        node, settings, weight = decision.node, decision.settings, decision.weight
        assert settings is not None
        assert weight is not None
        gemm = node.op_type == "Gemm"
        alpha = node.attributes.get_float("alpha", 1.0) if gemm else 1.0
        lazy = self._lazy(decision, alpha)
        scheme = lazy.scheme
        ours = self._ours(scheme)

        a = node.inputs[0]
        assert a is not None
        if gemm and node.attributes.get_int("transA", 0) == 1:
            a = insert_before(node, "Transpose", [a], None, suffix="_A", attributes={"perm": [1, 0]})
            a.type = ir.TensorType(weight.dtype)
        packed = self._part(lazy, "packed", suffix="_codes")
        scales = self._scales(node, lazy, "scales")
        zero_points = None if scheme.symmetric else self._part(lazy, "zero_points")
        last, bias, added = find_bias(self._graph, node, weight.N)

        inputs = [a, packed, scales, zero_points, *([] if ours else [None]), bias]
        while inputs[-1] is None:
            inputs.pop()
        attributes: dict[str, int | list[int]] = {
            "K": weight.K,
            "N": weight.N,
            "bits": scheme.bits,
            "block_size": scheme.block_size,
            "accuracy_level": settings.accuracy_level,
        }
        overload = ""
        if ours:
            function = self._function(model, lazy, bias is not None)
            overload = function.overload
        y = insert_before(
            last, "MatMulNBits", inputs, last.outputs[0], domain="onnxpress" if ours else MICROSOFT,
            overload=overload, suffix="", attributes=attributes,
        )  # fmt: skip
        product = y.producer()
        assert product is not None
        product.name = node.name
        model.graph.opset_imports.setdefault(product.domain, 1)
        if added is not None:
            y.name = f"{last.outputs[0].name}_product"
            y = add_scaled(self._graph, node, y, added)
        replace(last, y)
        if last is not node:
            assert node.graph is not None
            node.graph.remove(node, safe=True)

    def _function(self, model: ir.Model, lazy: LazyWeight, bias: bool) -> ir.Function:
        """The meaning of the node in standard ops, added to the model once a variant."""
        scheme = lazy.scheme
        function = functions.matmul_nbits(
            bits=scheme.bits, K=lazy.weight.K, N=lazy.weight.N, block_size=scheme.block_size,
            activation=lazy.weight.dtype,
            scale=ir.DataType.FLOAT16 if scheme.scale_type == "float16" else ir.DataType.FLOAT,
            zero_points=not scheme.symmetric, bias=bias, opset=model.graph.opset_imports[""],
        )  # fmt: skip
        return model.functions.setdefault(function.identifier(), function)

    def _rewrite_qdq(self, decision: Decision) -> None:
        node, weight = decision.node, decision.weight
        assert weight is not None
        lazy = self._lazy(decision, 1.0)
        scheme = lazy.scheme
        small = scheme.bits <= 4
        if scheme.bits not in (4, 8):
            note = f"form qdq stores int{scheme.bits} codes in {4 if small else 8} bits: ONNX has no such type"
            self.warnings += [note] if note not in self.warnings else []
        if scheme.symmetric:
            codes_type = ir.DataType.INT4 if small else ir.DataType.INT8
        else:
            codes_type = ir.DataType.UINT4 if small else ir.DataType.UINT8
        inputs = [self._part(lazy, "codes", codes_type), self._scales(node, lazy, "scales_kn")]
        if not scheme.symmetric:
            inputs.append(self._part(lazy, "zero_points_kn", codes_type, "_zero_points"))
        dequantized = insert_before(
            node, "DequantizeLinear", inputs, None, suffix="_weight",
            attributes={"axis": 0, "block_size": scheme.block_size},
        )  # fmt: skip
        dequantized.type = ir.TensorType(weight.dtype)
        dequantized.shape = ir.Shape([weight.K, weight.N])
        node.replace_input_with(1, dequantized)
        if node.op_type == "Gemm":
            node.attributes["transB"] = ir.AttrInt64("transB", 0)
