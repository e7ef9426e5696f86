"""Op `onnxpress::MatMulNBits`: a weight of a few bits, dequantized block by block."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .codes import _unpack
from .types import Float32, UInt8


def dequantize(
    packed: UInt8,
    scales: npt.NDArray[np.floating],
    zero_points: npt.NDArray[np.generic] | None,
    *,
    bits: int,
    block_size: int,
    K: int,
) -> Float32:
    """Weight that a packed form stands for: (code - zero_point) * scale.

    Args:
        packed: uint8 [N, n_blocks, block_size * bits / 8].
        scales: float [N, n_blocks].
        zero_points: None (2**(bits - 1) everywhere), packed uint8 [N, bytes], or float [N, n_blocks].
        bits: 2 to 8.
        block_size: Codes in a block.
        K: Length of the reduction.

    Returns:
        float32 [K, N].
    """
    N, n_blocks = packed.shape[:2]
    codes = _unpack(packed, bits, block_size).astype(np.float32)
    if zero_points is None:
        offsets = np.full((N, n_blocks), 2 ** (bits - 1), np.float32)
    elif zero_points.dtype == np.uint8:
        offsets = _unpack(np.asarray(zero_points, np.uint8).reshape(N, -1), bits, n_blocks).astype(np.float32)
    else:
        offsets = zero_points.reshape(N, n_blocks).astype(np.float32)
    scale = scales.reshape(N, n_blocks, 1).astype(np.float32)
    weight = (codes - offsets[:, :, None]) * scale
    return np.ascontiguousarray(weight.reshape(N, -1)[:, :K].T)


def quantize_activations(A: Float32, block_size: int) -> tuple[npt.NDArray[np.int8], Float32]:
    """Symmetric int8 per row and block: scale = max|a| / 127, code = round(a * 127 / max|a|).

    Args:
        A: float32 [M, K]; padded with zeros to whole blocks.
        block_size: Values in a block.

    Returns:
        int8 [M, n_blocks, block_size] and float32 scales [M, n_blocks] (0 for a block of zeros).
    """
    M, K = A.shape
    blocks = np.pad(A, [(0, 0), (0, -K % block_size)]).reshape(M, -1, block_size)
    peak = np.abs(blocks).max(axis=2)
    usable = peak > 127 / np.finfo(np.float32).max  # below, 127 / peak would overflow
    inverse = np.divide(np.float32(127), peak, out=np.zeros_like(peak), where=usable)
    codes = np.rint(blocks * inverse[:, :, None])
    return codes.astype(np.int8), peak * np.float32(1 / 127)


def round_to_bfloat16(A: Float32) -> Float32:
    """The nearest numbers of 8 significant bits, halfway cases to even; float32 of the shape of A."""
    bits = A.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(A), A, rounded.view(np.float32))


def activation_block(block_size: int, K: int) -> int:
    """Values of a row that share a scale at accuracy_level 4: those of a block, or of an equal part of a long one.

    The largest multiple of 32 up to 256 that divides the block, else 16, so that an outlier spoils few others.

    Args:
        block_size: Of the weight; from K on there is one block, of K values in whole 32s.
        K: Length of the reduction.
    """
    own = -(-K // 32) * 32 if block_size >= K else block_size
    return next((size for size in range(256, 0, -32) if own % size == 0), 16)


def matmul_nbits(
    A: npt.NDArray[np.floating],
    packed: UInt8,
    scales: npt.NDArray[np.floating],
    zero_points: npt.NDArray[np.generic] | None = None,
    bias: npt.NDArray[np.floating] | None = None,
    *,
    bits: int,
    block_size: int,
    K: int,
    accuracy_level: int = 0,
) -> npt.NDArray[np.float64]:
    """Op `onnxpress::MatMulNBits`: A @ dequantize(B) + bias.

    At accuracy_level 4 the activations are first rounded by `quantize_activations` in blocks of `activation_block`,
    as the kernels do; at level 3 to bfloat16, as the kernels do on instruction sets that multiply bfloat16. On others
    they compute level 3 in float32.

    Args:
        A: float [..., K].
        packed: uint8 [N, n_blocks, bytes of block_size codes].
        scales: float [N, n_blocks].
        zero_points: As in `dequantize`.
        bias: float [N] or None.
        bits: 2 to 8.
        block_size: Codes in a block: a multiple of 16, or not less than K.
        K: Length of the reduction.
        accuracy_level: 4 for int8 activations, 3 for bfloat16 ones, anything else for exact ones.

    Returns:
        float64 [..., N].
    """
    rows: npt.NDArray[np.floating] = np.asarray(A, np.float32).reshape(-1, K)
    if accuracy_level == 4:
        codes, scale = quantize_activations(np.asarray(rows, np.float32), activation_block(block_size, K))
        rows = (codes.astype(np.float64) * scale[:, :, None]).reshape(rows.shape[0], -1)[:, :K]
    elif accuracy_level == 3:
        rows = round_to_bfloat16(np.ascontiguousarray(rows))
    weight = dequantize(packed, scales, zero_points, bits=bits, block_size=block_size, K=K)
    result = rows.astype(np.float64) @ weight.astype(np.float64)
    if bias is not None:
        result = result + np.asarray(bias, np.float64)
    return result.reshape(*A.shape[:-1], packed.shape[0])
