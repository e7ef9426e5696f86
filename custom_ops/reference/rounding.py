"""Rounding a weight to a few bits, block by block."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .codes import pack_codes
from .types import Float32, UInt8

MULTIPLES = (1.06, 0.97, 0.94, 0.91, 0.88)
"""Of the scale of minimum and maximum, which the scale search tries beside it."""
FURTHER_MULTIPLES = (0.85, 0.82, 0.79, 0.76, 0.73, 0.7)
"""Which it tries, too, where data tells what errors count, and for few bits."""
FEW_BITS = 2
"""Of integers whose range is always worth a search like that with data."""
LEAST_COUNT = 1.0
"""What the error of a weight of zero counts, where those of a block count 1 more on average."""
WORTH = 0.9
"""Of the cost of plain min/max rounding: what another scale costs less than, to be taken without data. With 1 a
language model of 0.5B, whose weights lie on a grid of 4 bits, lost 1.5 % of perplexity in int4, blocks of 128."""


def _round_scale(scale: Float32, scale_type: str) -> Float32:
    """To the stored type, within its range. Subnormal float32 scales become 0: their reciprocal would be infinite."""
    if scale_type == "float16":
        return np.clip(scale, -65504, 65504).astype(np.float16).astype(np.float32)
    if scale_type == "half":
        with np.errstate(over="ignore"):
            halves = scale.astype(np.float16).astype(np.float32)
        scale = np.where((np.abs(halves) >= 2.0**-14) & (np.abs(halves) <= 65504), halves, scale)
    return np.where(np.abs(scale) < np.finfo(np.float32).tiny, np.float32(0), scale)


def _reciprocal(x: Float32) -> Float32:
    result: Float32 = np.divide(np.float32(1), x, out=np.zeros_like(x), where=x != 0)
    return result


def _sum(rows: Float32) -> Float32:
    """In order along the block, as the kernels add."""
    total = np.zeros(rows.shape[1:], np.float32)
    for row in rows:
        total = total + row
    return total


def _codes(x: Float32, scale: Float32, zero: Float32, levels: int) -> Float32:
    """The nearest codes at a scale and zero point."""
    codes: Float32 = np.clip(np.rint(x * _reciprocal(scale) + zero), 0, levels).astype(np.float32)
    return codes


def _counts(x: Float32, extreme: Float32) -> Float32:
    """What each weight's squared error counts: more, the larger it is within its block."""
    share = x * _reciprocal(_round_scale(extreme, "float32"))
    squares = share * share
    counts: Float32 = squares * (np.float32(len(x)) * _reciprocal(_sum(squares))) + np.float32(LEAST_COUNT)
    return counts


def quantize_block(
    x: Float32, bits: int, symmetric: bool, search: bool, scale_type: str, importance: Float32 | None = None
) -> tuple[UInt8, Float32, UInt8, Float32, Float32, Float32]:
    """Quantize blocks, one a column, each with the best scale among a few.

    Symmetric: the value of largest magnitude keeps its sign and is put on the code that has the room for it,
    so scale = extreme / -2**(bits-1), which uses all 2**bits codes. Asymmetric: the range [min, max] with zero
    included maps to [0, 2**bits - 1]. The search tries `MULTIPLES` of that scale and minimises

        sum over the block of h (x - s q)^2,   h = LEAST_COUNT + x^2 / mean(x^2).

    Plain squares, h = 1, would cut off the largest weights for the good of the many small ones; but a model needs
    the large ones most, which meet its large activations. That the error of a weight counts by its own square is
    what the k-quants of llama.cpp do where no data says better; as it is but a guess, a scale is taken only where it
    costs less than `WORTH` times what plain min/max does. Where data says better, h is the importance of each input,
    smaller scales are tried as well, any gain is worth it, and the best is moved to the least-squares optimum for the
    codes found, s = sum(h x q) / sum(h q q) with q = code - zero_point (a step of Lloyd's method). Without data that
    step makes blocks smaller than they were as a whole, and small blocks worse: a sentence encoder in symmetric int4
    of blocks of 32 lost 2 % more by it. With `FEW_BITS` there is no choice, for min/max spends its few codes on the
    rarest values: there the smaller scales and the step are tried without data, too (perplexity of a language model in
    int2 of blocks of 32: min/max 432, `MULTIPLES` alone 181, all of it 107).

    Args:
        x: float32 [block_size, columns].
        bits: 2 to 8.
        symmetric: Zero point fixed at 2**(bits - 1).
        search: Try other scales; otherwise plain min/max.
        scale_type: "float32", "float16" or "half" (numbers of float16 where these are normal): what scales are rounded
            to before codes are chosen.
        importance: float32 [block_size], not negative.

    Returns:
        codes uint8 [block_size, columns], scales float32 [columns], zero points uint8 [columns], and of each column
        the squared error, what the search minimised, and what that is for plain min/max rounding.
    """
    levels = 2**bits - 1
    middle = np.float32(2 ** (bits - 1))
    low = np.minimum(x.min(axis=0), np.float32(0))
    high = np.maximum(x.max(axis=0), np.float32(0))
    extreme = np.where(high > -low, high, low).astype(np.float32)
    counts = _counts(x, extreme) if importance is None else np.broadcast_to(importance[:, None], x.shape)
    thorough = importance is not None or bits <= FEW_BITS
    multiples = (*MULTIPLES, *FURTHER_MULTIPLES) if thorough else MULTIPLES

    def candidate(multiple: float) -> tuple[Float32, Float32]:
        factor = np.float32(multiple)
        if symmetric:
            scale = _round_scale(extreme * factor / -middle, scale_type)
            return scale, np.full_like(scale, middle)
        scale = _round_scale(high * factor / np.float32(levels) - low * factor / np.float32(levels), scale_type)
        zero = np.clip(np.rint(-low * factor * _reciprocal(scale)), 0, levels).astype(np.float32)
        return scale, zero

    def judge(scale: Float32, zero: Float32) -> Float32:
        difference = (_codes(x, scale, zero, levels) - zero) * scale - x
        return _sum(difference * difference * counts)

    plain = scale, zero = candidate(1.0)
    cost = baseline = judge(scale, zero)
    for multiple in multiples if search else ():
        tried, offset = candidate(multiple)
        wrong = judge(tried, offset)
        better = wrong < cost
        scale, zero, cost = (
            np.where(better, tried, scale),
            np.where(better, offset, zero),
            np.where(better, wrong, cost),
        )
    if search and thorough:
        q = _codes(x, scale, zero, levels) - zero
        weighted = q * counts
        above, below = _sum(x * weighted), _sum(q * weighted)
        tried = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
        tried = _round_scale(tried, scale_type)
        wrong = judge(tried, zero)
        better = wrong < cost
        scale, cost = np.where(better, tried, scale), np.where(better, wrong, cost)
    if search and importance is None:
        worth = cost < np.float32(WORTH) * baseline
        scale, zero = np.where(worth, scale, plain[0]), np.where(worth, zero, plain[1])
        cost = np.where(worth, cost, baseline)
    codes = _codes(x, scale, zero, levels)
    difference = (codes - zero) * scale - x
    return codes.astype(np.uint8), scale, zero.astype(np.uint8), _sum(difference * difference), cost, baseline


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
    importance: Float32 | None = None,
) -> tuple[float, float, float, float]:
    """Round output channels `columns` of a weight to `bits` in blocks along K, see `quantize_block`.

    Args:
        weight: float32 or float16, [K, N], or [N, K] if `transposed`.
        transposed: Whether output channels are the first axis.
        bits: 2 to 8.
        block_size: A multiple of 16; K is padded with zeros to whole blocks.
        symmetric: Zero point fixed at 2**(bits - 1).
        search: Whether to search scales.
        scale_type: "float32", "float16" or "half".
        columns: Half-open range of output channels; it begins at a multiple of 16.
        packed: uint8 [N, n_blocks, block_size * bits / 8], written in those channels.
        scales: float32 [N, n_blocks], written.
        zero_points: uint8 [N, n_blocks], one code a byte, written.
        importance: float32 [K], what errors count, not negative.

    Returns:
        Sums over those channels: squared error, what the search minimised, that of plain min/max, squares of the
        weight.
    """
    begin, end = columns
    part = weight[begin:end].T if transposed else weight[:, begin:end]
    part = part.astype(np.float32)
    rest = -part.shape[0] % block_size
    part = np.pad(part, [(0, rest), (0, 0)])
    counts = None if importance is None else np.pad(importance, (0, rest)).reshape(-1, block_size)
    sums = np.zeros(4)
    for block in range(part.shape[0] // block_size):
        x = np.ascontiguousarray(part[block * block_size : (block + 1) * block_size])
        codes, scale, zero, *errors = quantize_block(
            x, bits, symmetric, search, scale_type, None if counts is None else counts[block]
        )
        packed[begin:end, block] = pack_codes(np.ascontiguousarray(codes.T), bits)
        scales[begin:end, block] = scale
        zero_points[begin:end, block] = zero
        sums += [*(each.sum(dtype=np.float64) for each in errors), np.square(x, dtype=np.float64).sum()]
    error, cost, baseline, energy = (float(each) for each in sums)
    return error, cost, baseline, energy


def all_finite(array: npt.NDArray[np.floating]) -> bool:
    """Whether no element is NaN or infinite."""
    return bool(np.isfinite(array).all())
