"""Op `onnxpress::BlockSparseMatMul`: a weight of which only some blocks are stored.

The weight [K, N] is cut into blocks of block_k x block_n; those at the end are padded with zeros. A block row is all
blocks of the same block_n outputs. Stored are, block row after block row, the blocks that are not zero (CSR of the
blocks of the transposed weight): `values` [blocks, block_n, block_k], `indices` [blocks], which block along K each is,
and `offsets` [block rows + 1], where each block row begins.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .activations import activate
from .int8 import quantize_linear
from .types import Float32


def decode_blocks(
    values: npt.NDArray[np.generic],
    indices: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int32],
    K: int,
    N: int,
) -> npt.NDArray[np.generic]:
    """The dense weight.

    Args:
        values: float32 or int8 [blocks, block_n, block_k].
        indices: int32 [blocks].
        offsets: int32 [ceil(N / block_n) + 1].
        K: Length of the reduction.
        N: Output channels.

    Returns:
        [K, N] of the type of values.
    """
    block_n, block_k = values.shape[1:]
    rows, columns = -(-N // block_n), -(-K // block_k)
    blocks = np.zeros((columns, rows, block_n, block_k), values.dtype)
    blocks[indices, np.repeat(np.arange(rows), np.diff(offsets))] = values
    weight = blocks.transpose(0, 3, 1, 2).reshape(columns * block_k, rows * block_n)
    return np.ascontiguousarray(weight[:K, :N])


def quantize_rows(A: Float32) -> tuple[npt.NDArray[np.int8], Float32]:
    """Symmetric int8 per row: scale = max|a| / 127, code = a / scale rounded to the nearest, ties to even.

    Args:
        A: float32 [M, K].

    Returns:
        int8 [M, K], zeros where the scale is subnormal, and float32 scales [M]: NaN for a row with a NaN or an
        infinity, whose codes mean nothing.
    """
    peak = np.abs(A).max(axis=1, initial=0)
    with np.errstate(invalid="ignore"):
        scale = np.where(np.isfinite(peak), peak / np.float32(127), np.float32(np.nan))
        quotient = A / np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)[:, None]
        codes = np.where(np.isnan(quotient), np.float32(0), np.rint(quotient))
    return codes.astype(np.int8), scale


def block_sparse_matmul(
    A: npt.NDArray[np.generic],
    values: npt.NDArray[np.generic],
    indices: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int32],
    scales: Float32 | None = None,
    bias: Float32 | None = None,
    *,
    K: int,
    N: int,
    activation: str = "",
    a_scale: np.float32 | float | None = None,
    a_zero_point: np.uint8 | int | None = None,
    y_scale: np.float32 | float | None = None,
    y_zero_point: np.uint8 | int | None = None,
) -> npt.NDArray[np.generic]:
    """Activation of A times the weight plus a bias.

    Of an int8 weight the sums are exact: of codes of A, by `a_scale` and `a_zero_point` or else by `quantize_rows`.
    Their float32 is multiplied by the float32 scale of the row times that of the column, and the bias is added with a
    rounding of its own.

    Args:
        A: float32 [..., K], or uint8 codes where `a_scale` is given.
        values: float32 or int8, as in `decode_blocks`; of int8 at most 65,793 for an output, whose sums fit in int32.
        indices: As in `decode_blocks`.
        offsets: As in `decode_blocks`.
        scales: float32 [N], of int8 values.
        bias: float32 [N].
        K: Length of the reduction.
        N: Output channels.
        activation: "", "relu", "gelu" or "gelu_tanh".
        a_scale: Of uint8 codes of A; with `a_zero_point`.
        a_zero_point: See `a_scale`.
        y_scale: Of uint8 codes of the output; with `y_zero_point`.
        y_zero_point: See `y_scale`.

    Returns:
        [..., N]: uint8 where `y_scale` is given, else float64.
    """
    weight = decode_blocks(values, indices, offsets, K, N)
    rows = A.reshape(-1, K)
    y: npt.NDArray[np.floating]
    if values.dtype == np.int8:
        assert scales is not None
        codes: npt.NDArray[np.generic]
        if a_scale is None:
            codes, scale = quantize_rows(np.asarray(rows, np.float32))
            zero_point = 0
        else:
            zero_point, scale = int(a_zero_point or 0), np.array([a_scale], np.float32)
            point = np.uint8(zero_point)
            codes = rows if rows.dtype == np.uint8 else quantize_linear(np.asarray(rows, np.float32), a_scale, point)
        # Exact in float64, in any order, and in int32: an output has at most 65,793 products of codes.
        sums = (codes.astype(np.float64) - zero_point) @ weight.astype(np.float64)
        y = sums.astype(np.float32) * (scale[:, None] * scales)
        y = y if bias is None else y + bias
    else:
        y = rows.astype(np.float64) @ weight.astype(np.float64)
        y = y if bias is None else y + bias.astype(np.float64)
    result: npt.NDArray[np.generic] = activate(y, activation or None)
    if y_scale is not None:
        result = quantize_linear(result.astype(np.float32), y_scale, np.uint8(y_zero_point or 0))
    return result.reshape(*A.shape[:-1], N)
