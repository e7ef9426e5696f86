"""Products of FLOAT8 in the form QDQ, which not every ONNX Runtime takes.

Before 1.32 it takes a MatMul of two decoded FLOAT8 tensors for one of int8, makes a QLinearMatMul or a
MatMulIntegerToFloat of it and then refuses that; up to 1.27 it does so with a Gemm without a bias, which becomes a
QGemm. Products with one such operand, convolutions, and a Gemm with a bias in float it leaves as they are (1.23, 1.27,
1.28, 1.30 and 1.31 were tried).
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from .matching import behind, input_of, is_standard

_FLOAT8 = (ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2)


def warn_of_float8_products(model: ir.Model) -> list[str]:
    """The warning about what an older ONNX Runtime refuses of a model, where there is any."""
    found = Counter(node.op_type for node in model.graph.all_nodes() if _is_refused(node))
    if not found:
        return []
    listed = " and ".join(f"{count} {op_type}" for op_type, count in sorted(found.items()))
    return [
        f"ONNX Runtime before 1.32 refuses {listed} of FLOAT8 unless the session has the entry "
        "session.disable_quant_qdq=1"
    ]


def _is_refused(node: ir.Node) -> bool:
    product = is_standard(node, "MatMul") or (is_standard(node, "Gemm") and input_of(node, 2) is None)
    return product and all(_is_float8(value) for value in node.inputs[:2])


def _is_float8(value: ir.Value | None) -> bool:
    codes = behind(value, "DequantizeLinear")
    return codes is not None and codes.dtype in _FLOAT8
