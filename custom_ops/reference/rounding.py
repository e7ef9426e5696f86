"""Rounding a weight to a few bits, block by block."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .codes import pack_codes
from .types import Float32, UInt8

SHRINKS = tuple(1.0 - 0.04 * step for step in range(12))
"""Fractions of a block's range that the scale search tries: 1, 0.96, ... 0.56."""


def _round_scale(scale: Float32, scale_type: str) -> Float32:
    """To the stored type, within its range. Subnormal float32 scales become 0: their reciprocal would be infinite."""
    if scale_type == "float16":
        return np.clip(scale, -65504, 65504).astype(np.float16).astype(np.float32)
    return np.where(np.abs(scale) < np.finfo(np.float32).tiny, np.float32(0), scale)


def _codes_and_error(x: Float32, scale: Float32, zero: Float32, levels: int) -> tuple[Float32, npt.NDArray[np.float32]]:
    """Nearest codes at a given scale and zero point, and the squared error summed in order along the block."""
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    codes = np.clip(np.rint(x * inverse + zero), 0, levels).astype(np.float32)
    difference = (codes - zero) * scale - x
    error = np.zeros(x.shape[1:], np.float32)
    for row in difference * difference:
        error = error + row
    return codes, error


def quantize_block(
    x: Float32, bits: int, symmetric: bool, search: bool, scale_type: str
) -> tuple[UInt8, Float32, UInt8, Float32, Float32]:
    """Quantize blocks, one a column, each with the scale of least squared error among the candidates.

    Symmetric: the value of largest magnitude keeps its sign and is put on the code that has the room for it,
    so scale = extreme / -2**(bits-1), which uses all 2**bits codes. Asymmetric: the range [min, max] with zero
    included maps to [0, 2**bits - 1]. The search shrinks that range in steps, and after each step moves the
    scale to the least-squares optimum for the codes found, s = sum(x q) / sum(q q) with q = code - zero_point
    (the alternation of Lloyd's method).

    Args:
        x: float32 [block_size, columns].
        bits: 2 to 8.
        symmetric: Zero point fixed at 2**(bits - 1).
        search: Try `SHRINKS` and refine; otherwise plain min/max.
        scale_type: "float32" or "float16": what scales are rounded to before codes are chosen.

    Returns:
        codes uint8 [block_size, columns], scales float32 [columns], zero points uint8 [columns],
        squared error [columns], squared error of plain min/max rounding [columns].
    """
    levels = 2**bits - 1
    middle = np.float32(2 ** (bits - 1))
    low = np.minimum(x.min(axis=0), np.float32(0))
    high = np.maximum(x.max(axis=0), np.float32(0))
    extreme = np.where(high > -low, high, low).astype(np.float32)

    def candidate(shrink: float) -> tuple[Float32, Float32]:
        factor = np.float32(shrink)
        if symmetric:
            scale = _round_scale(extreme * factor / -middle, scale_type)
            return scale, np.full_like(scale, middle)
        scale = _round_scale(high * factor / np.float32(levels) - low * factor / np.float32(levels), scale_type)
        inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
        zero = np.clip(np.rint(-low * factor * inverse), 0, levels).astype(np.float32)
        return scale, zero

    scale, zero = candidate(1.0)
    codes, error = _codes_and_error(x, scale, zero, levels)
    baseline = error
    for shrink in SHRINKS if search else ():
        tried, offset = candidate(shrink)
        found, wrong = _codes_and_error(x, tried, offset, levels)
        for refine in (False, True):
            if refine:
                q = found - offset
                above, below = np.zeros_like(tried), np.zeros_like(tried)
                for xi, qi in zip(x, q, strict=True):
                    above, below = above + xi * qi, below + qi * qi
                tried = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
                tried = _round_scale(tried, scale_type)
                found, wrong = _codes_and_error(x, tried, offset, levels)
            better = wrong < error
            codes = np.where(better, found, codes)
            scale, zero = np.where(better, tried, scale), np.where(better, offset, zero)
            error = np.where(better, wrong, error)
    return codes.astype(np.uint8), scale, zero.astype(np.uint8), error, baseline


def quantize_blocks(
    weight: npt.NDArray[np.floating],
    transposed: bool,
    bits: int,
    block_size: int,
    symmetric: bool,
    search: bool,
    scale_type: str,
    columns: tuple[int, int],
    packed: UInt8,
    scales: Float32,
    zero_points: UInt8,
) -> tuple[float, float, float]:
    """Round output channels `columns` of a weight to `bits` in blocks along K, see `quantize_block`.

    Args:
        weight: float32 or float16, [K, N], or [N, K] if `transposed`.
        transposed: Whether output channels are the first axis.
        bits: 2 to 8.
        block_size: A multiple of 16; K is padded with zeros to whole blocks.
        symmetric: Zero point fixed at 2**(bits - 1).
        search: Whether to search scales.
        scale_type: "float32" or "float16".
        columns: Half-open range of output channels; it begins at a multiple of 16.
        packed: uint8 [N, n_blocks, block_size * bits / 8], written in those channels.
        scales: float32 [N, n_blocks], written.
        zero_points: uint8 [N, n_blocks], one code a byte, written.

    Returns:
        Sums over those channels: squared error, squared error of plain min/max, squares of the weight.
    """
    begin, end = columns
    part = weight[begin:end].T if transposed else weight[:, begin:end]
    part = part.astype(np.float32)
    part = np.pad(part, [(0, -part.shape[0] % block_size), (0, 0)])
    sums = np.zeros(3)
    for block in range(part.shape[0] // block_size):
        x = np.ascontiguousarray(part[block * block_size : (block + 1) * block_size])
        codes, scale, zero, error, baseline = quantize_block(x, bits, symmetric, search, scale_type)
        packed[begin:end, block] = pack_codes(np.ascontiguousarray(codes.T), bits)
        scales[begin:end, block] = scale
        zero_points[begin:end, block] = zero
        sums += [
            error.sum(dtype=np.float64),
            baseline.sum(dtype=np.float64),
            np.square(x, dtype=np.float64).sum(),
        ]
    return float(sums[0]), float(sums[1]), float(sums[2])


def all_finite(array: npt.NDArray[np.floating]) -> bool:
    """Whether no element is NaN or infinite."""
    return bool(np.isfinite(array).all())
