"""How a rounded weight is written into a graph, and why it cannot be.

| form | integers | other formats |
|---|---|---|
| "qoperator" | com.microsoft::MatMulNBits where it has the bits, else our MatMulNBits | our MatMulMiniFloat |
| "onnxpress" | our MatMulNBits | the same |
| "qdq" | DequantizeLinear in blocks | DequantizeLinear in blocks or by channels, where ONNX has the type |

A convolution keeps its operator and reads what our DequantizeMiniFloat, or DequantizeLinear, makes of the codes.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
from onnxpress.custom_ops import functions

from ..quantization.schemes import WeightScheme, int8_weights

MICROSOFT = "com.microsoft"
_MICROSOFT_BITS = (2, 4, 8)
ROUNDS_ROWS = 4
"""The accuracy level at which ONNX Runtime packs codes together with scales, when the session is made. Where a float16
product stands between operators without float16 kernels it puts casts around it, one of them behind the scales, which
it then takes for zeros, unless all of its optimizations are on. So the casts are ours, the product one of float32."""

_STANDARD = {
    "e4m3fn": ir.DataType.FLOAT8E4M3FN,
    "e5m2": ir.DataType.FLOAT8E5M2,
    "e2m1": ir.DataType.FLOAT4E2M1,
}
_SCALES = {
    "float32": ir.DataType.FLOAT,
    "half": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "pow2": ir.DataType.FLOAT,
    "e8m0": ir.DataType.BFLOAT16,  # has all its powers of two; MatMulMiniFloat has the type itself
}
_FACTOR_BLOCKS = (16, 32, 64, 128)
_CAST_OF_BFLOAT16 = 13  # the first opset that has it


@dataclasses.dataclass(frozen=True)
class WeightForm:
    """An operator that reads a rounded weight.

    Attributes:
        domain: Its domain.
        op_type: "MatMulNBits", "MatMulMiniFloat", "DequantizeMiniFloat" or "DequantizeLinear".
        scheme: How the weight is rounded, with scales that the operator can take.
        scales: Type of the stored scales.
        opset: Oldest opset of the standard domain that it needs.
        ir_version: Oldest version of the format that has its types.
        codes: Type of the codes of DequantizeLinear.
        widened: Whether it computes in float32 what its node does in float16, between two casts.
    """

    domain: str
    op_type: str
    scheme: WeightScheme
    scales: ir.DataType
    opset: int = 1
    ir_version: int = 3
    codes: ir.DataType = ir.DataType.UINT8
    widened: bool = False

    @property
    def ours(self) -> bool:
        """Whether the operator is of our domain, which ties the type of scales to no other."""
        return self.domain == functions.DOMAIN

    @property
    def warning(self) -> str:
        """What whoever asked for it should know; empty where there is nothing."""
        if self.codes == ir.DataType.FLOAT4E2M1:
            return "ONNX Runtime up to 1.32 has no DequantizeLinear of FLOAT4E2M1: only our execution provider runs it"
        if self.op_type == "DequantizeLinear" and self.scheme.integer and self.scheme.bits not in (4, 8):
            stored = 4 if self.scheme.bits < 4 else 8
            return f"form qdq stores int{self.scheme.bits} codes in {stored} bits: ONNX has no such type"
        return ""


def weight_form(form: str, scheme: WeightScheme, dtype: ir.DataType, accuracy_level: int = 0) -> WeightForm | str:
    """The operator for a weight that its node reads as `dtype`, or why there is none."""
    if form == "qdq":
        return _standard_form(scheme, dtype)
    if not scheme.integer:
        return _minifloat_form("MatMulMiniFloat", scheme)
    tied = dtype == ir.DataType.FLOAT16
    if form == "onnxpress" or scheme.bits not in _MICROSOFT_BITS or (tied and not scheme.has_kernel):
        return WeightForm(functions.DOMAIN, "MatMulNBits", scheme, _SCALES[scheme.scale_type], functions.MIN_OPSET)
    scheme = dataclasses.replace(scheme, scale_type="float16") if tied else scheme
    scales = _SCALES[scheme.scale_type]
    opset = _CAST_OF_BFLOAT16 if scales == ir.DataType.BFLOAT16 else 1
    widened = tied and accuracy_level == ROUNDS_ROWS
    return WeightForm(MICROSOFT, "MatMulNBits", scheme, scales, opset, widened=widened)


def convolution_form(form: str, scheme: WeightScheme, dtype: ir.DataType, K: int) -> WeightForm | str:
    """What decodes a weight of rows of K that is no integers for a convolution, or why nothing does."""
    if scheme.block_size >= K:  # as one block of K, without the codes that would pad it
        scheme = dataclasses.replace(scheme, block_size=0)
    if form != "qdq":
        return _minifloat_form("DequantizeMiniFloat", scheme)
    standard = _standard_form(scheme, dtype)
    if isinstance(standard, WeightForm) and standard.codes == ir.DataType.FLOAT4E2M1:
        return "nothing that we know of decodes FLOAT4E2M1 for convolutions; form qoperator has an operator"
    return standard


def factor_form(form: str, length: int, dtype: ir.DataType, accuracy_level: int = 0) -> WeightForm:
    """The operator for a factor of a product of low rank, of integers of 8 bits.

    They take half the bytes of float16 and, at the accuracy level that is the default of integers, no more time; what
    they lose of a part of the error is a thousandth of it.

    Args:
        form: Of the weight that it compensates.
        length: Of its sums.
        dtype: As which the node reads it.
        accuracy_level: Of the node.
    """
    if form == "qdq":  # with a scale a column, for which no opset is too old
        return WeightForm("", "DequantizeLinear", int8_weights(), ir.DataType.FLOAT, 19, 9, ir.DataType.INT8)
    block = min(_FACTOR_BLOCKS, key=lambda size: -(-length // size) * (size + 4))  # bytes of a column
    scheme = WeightScheme("int8", "int8", block, symmetric=True, search=True, scale_type="float32")
    found = weight_form(form, scheme, dtype, accuracy_level)
    assert isinstance(found, WeightForm)
    return found


def _minifloat_form(op_type: str, scheme: WeightScheme) -> WeightForm:
    scales = ir.DataType.UINT8 if scheme.scale_type == "e8m0" else _SCALES[scheme.scale_type]
    return WeightForm(functions.DOMAIN, op_type, scheme, scales, functions.MIN_OPSET)


def _standard_form(scheme: WeightScheme, dtype: ir.DataType) -> WeightForm | str:
    codes = _integer_type(scheme) if scheme.integer else _STANDARD.get(scheme.format)
    if codes is None:
        return f"ONNX has no type for {scheme.format}; form qoperator has an operator"
    if dtype == ir.DataType.FLOAT16:
        if scheme.scale_type in ("e8m0", "pow2"):
            return f"DequantizeLinear to float16 takes no scales of {scheme.scale_type}; form qoperator does"
        scheme = dataclasses.replace(scheme, scale_type="float16")
    opset = 23 if codes == ir.DataType.FLOAT4E2M1 else 21 if scheme.block_size else 19
    ir_version = {19: 9, 21: 10, 23: 11}[opset]
    return WeightForm("", "DequantizeLinear", scheme, _SCALES[scheme.scale_type], opset, ir_version, codes)


def _integer_type(scheme: WeightScheme) -> ir.DataType:
    small = scheme.bits <= 4
    if scheme.symmetric:
        return ir.DataType.INT4 if small else ir.DataType.INT8
    return ir.DataType.UINT4 if small else ir.DataType.UINT8
