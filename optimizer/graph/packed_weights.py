"""How many weights the constants of quantized operators hold, some of which pack several into a byte."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import onnx_ir as ir
from onnxpress.custom_ops import functions

_MICROSOFT = "com.microsoft"


@dataclasses.dataclass(frozen=True)
class _Codes:
    """Where an operator has codes of weights, and scales, zero points or places of them.

    Attributes:
        weights: Inputs that hold codes.
        others: Inputs that belong to them.
        count: How many weights an input of so many elements holds; None where the node does not say it.
    """

    weights: tuple[int, ...]
    others: tuple[int, ...]
    count: Callable[[ir.Node, int], int | None] = lambda _node, size: size


def _number(node: ir.Node, name: str) -> int | None:
    attribute = node.attributes.get(name)
    return attribute.value if attribute is not None and isinstance(attribute.value, int) else None


def _product(node: ir.Node, _size: int) -> int | None:
    K, N = _number(node, "K"), _number(node, "N")
    return None if K is None or N is None else K * N


def _shape(node: ir.Node, _size: int) -> int | None:
    shape = node.attributes.get("shape")
    return None if shape is None or shape.type != ir.AttributeType.INTS else math.prod(shape.as_ints())


def _bytes_of(bits: str) -> Callable[[ir.Node, int], int]:
    """Of uint8 that holds codes of as many bits as an attribute says, 4 by default; int4 holds one each."""

    def count(node: ir.Node, size: int) -> int:
        codes = node.inputs[_CODES[node.domain, node.op_type].weights[0]]
        packs = codes is not None and codes.dtype == ir.DataType.UINT8
        return size * (8 // (_number(node, bits) or 4)) if packs else size

    return count


_CODES = {
    ("", "DequantizeLinear"): _Codes((0,), (1, 2)),
    ("", "QuantizeLinear"): _Codes((), (1, 2)),
    (_MICROSOFT, "MatMulNBits"): _Codes((1,), (2, 3, 4), _product),
    (_MICROSOFT, "MatMulBnb4"): _Codes((1,), (2,), _product),
    (_MICROSOFT, "MatMulFpQ4"): _Codes((1,), (2,), _product),
    (_MICROSOFT, "GatherBlockQuantized"): _Codes((0,), (2, 3), _bytes_of("bits")),
    (_MICROSOFT, "QMoE"): _Codes((2, 5, 8), (3, 6, 9, 11, 12, 13), _bytes_of("expert_weight_bits")),
    (functions.DOMAIN, "MatMulNBits"): _Codes((1,), (2, 3), _product),
    (functions.DOMAIN, "MatMulMiniFloat"): _Codes((1,), (2,), _product),
    (functions.DOMAIN, "DequantizeMiniFloat"): _Codes((0,), (1,), _shape),
    (functions.DOMAIN, "EncoderLayer"): _Codes((1, 4, 9, 12), (2, 5, 10, 13)),
    (functions.DOMAIN, "BlockSparseMatMul"): _Codes((1,), (2, 3, 4, 6, 7, 8, 9)),
}


def weights_in(value: ir.Value, size: int) -> int:
    """The weights that a constant of so many elements holds; scales, zero points and places of others hold none."""
    return max((_weights_for(use.node, use.idx, size) for use in value.uses()), default=size)


def _weights_for(node: ir.Node, index: int, size: int) -> int:
    codes = _CODES.get((node.domain, node.op_type))
    if codes is None:
        return size
    if index in codes.weights:
        count = codes.count(node, size)
        return size if count is None else count
    return 0 if index in codes.others else size
