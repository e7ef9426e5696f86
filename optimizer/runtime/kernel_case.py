"""One product to time, whose sizes are refused before anything slow is imported."""

from __future__ import annotations

import dataclasses

from ..errors import UsageError

QDQ_MATMUL, DYNAMIC_MATMUL = "qdq_matmul", "dynamic_matmul"
INT8_OPS = (QDQ_MATMUL, DYNAMIC_MATMUL)
"""Those of which ONNX Runtime multiplies uint8 by int8."""
OPS = ("matmul_nbits", *INT8_OPS, "minifloat")
"""Those of `Case`, named like the families of the execution provider."""

SHAPES = ((896, 4864), (4864, 896), (896, 151936), (4096, 14336))
"""K x N of products in language models."""
ROWS = (1, 2, 4, 8, 16, 32, 128, 512)


@dataclasses.dataclass(frozen=True)
class Case:
    """One product: [M, K] x [K, N].

    Attributes:
        M: Rows.
        K: Length of the reduction.
        N: Output channels.
        bits: Of the weight.
        block_size: Weights along K that share a scale; 0 where a whole column does.
        op: "matmul_nbits"; "qdq_matmul": 8-bit activations with constant scales between QuantizeLinear and
            DequantizeLinear; "dynamic_matmul": DynamicQuantizeLinear, then MatMulInteger; "minifloat": MatMulMiniFloat,
            beside which ONNX Runtime has MatMul with the same weight in float32.
        format: Of minifloat, with as many bits.
    """

    M: int
    K: int
    N: int
    bits: int
    block_size: int
    op: str = "matmul_nbits"
    format: str = "e4m3fn"

    def __post_init__(self) -> None:
        """Refuse what the op has not.

        Raises:
            UsageError: Not a size that it has, or no such op or format.
        """
        if self.op not in OPS:
            raise UsageError(f'op "{self.op}": there are {", ".join(OPS)}')
        if self.op == "matmul_nbits":
            if self.bits not in (2, 4, 8):
                raise UsageError(f"bits {self.bits}: ONNX Runtime has MatMulNBits of 2, 4 and 8")
            if self.block_size < 16 or self.block_size & (self.block_size - 1):
                raise UsageError(f"block size {self.block_size}: must be a power of two from 16")
        if self.op == "minifloat":
            if self.bits != format_bits(self.format):
                raise UsageError(f"bits {self.bits}: {self.format} has {format_bits(self.format)}")
            if self.block_size % 16:
                raise UsageError(f"block size {self.block_size}: must be a multiple of 16")
            if (size := self.block_size or self.K) * self.bits % 8:
                raise UsageError(f"{size} codes of {self.bits} bits: no whole bytes")


def format_bits(format: str) -> int:
    """Bits of a code of a format.

    Raises:
        UsageError: There is no such format.
    """
    from onnxpress.custom_ops import reference

    if format not in reference.MINIFLOATS:
        raise UsageError(f'format "{format}": there are {", ".join(reference.MINIFLOATS)}')
    return reference.minifloat_bits(format)
