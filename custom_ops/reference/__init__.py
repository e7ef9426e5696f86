"""What every op and kernel of this package means, in NumPy: slow, plain, and the oracle of all tests."""

from __future__ import annotations

from .activations import activate, gated_linear_unit, rms_norm
from .block_sparse import block_sparse_matmul, decode_blocks, quantize_rows
from .cached_attention import cached_attention
from .codes import PLANES, pack_codes, pack_zero_points, packed_bytes, unpack_codes, unpack_zero_points
from .encoder_layer import EncoderLayer, Product, encoder_layer, encoder_significance
from .gather import gather_rows
from .int8 import dynamic_quantize_linear, matmul_int8, quantize_linear
from .minifloat import (
    E8M0,
    LAYOUTS,
    MINIFLOATS,
    Layout,
    block_codes,
    dequantize_minifloat,
    dequantize_minifloat_tensor,
    matmul_minifloat,
    minifloat_bits,
    minifloat_zero,
    round_minifloat,
    rounding_errors,
)
from .nbits import activation_block, dequantize, matmul_nbits, quantize_activations, round_to_bfloat16
from .rounding import LEAST_COUNT, MULTIPLES, all_finite, quantize_block, quantize_blocks

__all__ = [
    "E8M0",
    "LAYOUTS",
    "LEAST_COUNT",
    "MINIFLOATS",
    "MULTIPLES",
    "PLANES",
    "EncoderLayer",
    "Layout",
    "Product",
    "activate",
    "activation_block",
    "all_finite",
    "block_codes",
    "block_sparse_matmul",
    "cached_attention",
    "decode_blocks",
    "dequantize",
    "dequantize_minifloat",
    "dequantize_minifloat_tensor",
    "dynamic_quantize_linear",
    "encoder_layer",
    "encoder_significance",
    "gated_linear_unit",
    "gather_rows",
    "matmul_int8",
    "matmul_minifloat",
    "matmul_nbits",
    "minifloat_bits",
    "minifloat_zero",
    "pack_codes",
    "pack_zero_points",
    "packed_bytes",
    "quantize_activations",
    "quantize_block",
    "quantize_blocks",
    "quantize_linear",
    "quantize_rows",
    "rms_norm",
    "round_minifloat",
    "round_to_bfloat16",
    "rounding_errors",
    "unpack_codes",
    "unpack_zero_points",
]
