"""Ops of domain `onnxpress` spelled out in standard ONNX ops.

A node whose model carries such a function passes the checker, gets its shapes inferred and runs, slowly, in a
runtime that has never heard of this library. Where the library is registered, its kernel takes the node before the
function is inlined. One function serves one combination of sizes and types; `overload` tells them apart.
"""

from __future__ import annotations

from .block_sparse import block_sparse_matmul
from .body import DOMAIN
from .encoder_layer import encoder_layer
from .minifloat import dequantize_minifloat, matmul_minifloat, round_minifloat
from .nbits import matmul_nbits

OPSET = 1
"""Version of the domain."""

MIN_OPSET = 13
"""Oldest opset of a model whose functions these can be."""

__all__ = [
    "DOMAIN",
    "MIN_OPSET",
    "OPSET",
    "block_sparse_matmul",
    "dequantize_minifloat",
    "encoder_layer",
    "matmul_minifloat",
    "matmul_nbits",
    "round_minifloat",
]
