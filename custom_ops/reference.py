"""What every op and kernel of this package means, in NumPy: slow, plain, and the oracle of all tests."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]

PLANES = {bits: tuple(w for w in (8, 4, 2, 1) if bits & w) for bits in range(2, 9)}
"""Widths of the bit planes of a code, lowest bits first: 3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2, 7 = 4 + 2 + 1."""

SHRINKS = tuple(1.0 - 0.04 * step for step in range(12))
"""Fractions of a block's range that the scale search tries: 1, 0.96, ... 0.56."""


def _pack_plane(codes: UInt8, width: int) -> UInt8:
    """Pack the last axis at `width` bits a code, first code in the low bits, padded with zeros to whole bytes."""
    per_byte = 8 // width
    padding = -codes.shape[-1] % per_byte
    padded = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, padding)])
    groups = padded.reshape(*padded.shape[:-1], -1, per_byte)
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(width)
    packed: UInt8 = np.bitwise_or.reduce(groups << shifts, axis=-1).astype(np.uint8)
    return packed


def _unpack_plane(packed: UInt8, width: int, count: int) -> UInt8:
    shifts = np.arange(8 // width, dtype=np.uint8) * np.uint8(width)
    codes = (packed[..., None] >> shifts) & np.uint8(2**width - 1)
    flat: UInt8 = codes.reshape(*packed.shape[:-1], -1)[..., :count]
    return flat


def pack_codes(codes: UInt8, bits: int) -> UInt8:
    """Pack codes along the last axis as bit planes.

    Args:
        codes: uint8 [..., count], each below 2**bits.
        bits: 2 to 8.

    Returns:
        uint8 [..., sum of ceil(count * width / 8) over the planes], the plane of the lowest bits first.
    """
    planes, shift = [], 0
    for width in PLANES[bits]:
        planes.append(_pack_plane((codes >> np.uint8(shift)) & np.uint8(2**width - 1), width))
        shift += width
    return np.concatenate(planes, axis=-1)


def _unpack(packed: UInt8, bits: int, count: int) -> UInt8:
    """Invert `pack_codes` for `count` codes a row."""
    codes = np.zeros((*packed.shape[:-1], count), np.uint8)
    begin = shift = 0
    for width in PLANES[bits]:
        end = begin + -(-count * width // 8)
        codes |= _unpack_plane(packed[..., begin:end], width, count) << np.uint8(shift)
        begin, shift = end, shift + width
    return codes


def unpack_codes(packed: UInt8, bits: int, block_size: int, K: int) -> UInt8:
    """Codes of a packed weight.

    Args:
        packed: uint8 [N, n_blocks, block_size * bits / 8].
        bits: 2 to 8.
        block_size: Codes in a block.
        K: Length of the reduction; n_blocks is ceil(K / block_size).

    Returns:
        uint8 [N, K].
    """
    codes = _unpack(packed, bits, block_size)
    return np.ascontiguousarray(codes.reshape(packed.shape[0], -1)[:, :K])


def pack_zero_points(zero_points: UInt8, bits: int) -> UInt8:
    """Pack uint8 [N, n_blocks] row by row, by the planes of `pack_codes`."""
    return pack_codes(zero_points, bits)


def unpack_zero_points(packed: UInt8, bits: int, n_blocks: int) -> UInt8:
    """Invert `pack_zero_points`; uint8 [N, n_blocks]."""
    return _unpack(packed, bits, n_blocks)


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


def activate(
    x: npt.NDArray[np.floating], activation: str | None, gate: npt.NDArray[np.floating] | None = None
) -> npt.NDArray[np.float64]:
    """What may follow a product: activation(x) * gate.

    Args:
        x: float [...].
        activation: None, "relu", "silu" (x * sigmoid(x)), "gelu" (x * (1 + erf(x / sqrt(2))) / 2) or "gelu_tanh"
            (x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x**3))) / 2).
        gate: float of the shape of x, or None.

    Returns:
        float64 of the shape of x.
    """
    y = np.asarray(x, np.float64)
    if activation == "relu":
        y = np.where(y < 0, 0.0, y)
    elif activation == "silu":
        y = y * _sigmoid(y)
    elif activation == "gelu":
        y = y * np.array([math.erfc(-each / math.sqrt(2)) / 2 for each in y.ravel().tolist()]).reshape(y.shape)
    elif activation == "gelu_tanh":
        y = y * _sigmoid(2 * math.sqrt(2 / math.pi) * (y + 0.044715 * y**3))
    return y if gate is None else y * np.asarray(gate, np.float64)


def _sigmoid(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    with np.errstate(over="ignore"):
        result: npt.NDArray[np.float64] = 1 / (1 + np.exp(-x))
    return result


def gather_rows(
    codes: npt.NDArray[np.integer],
    indices: npt.NDArray[np.integer],
    scales: npt.NDArray[np.floating],
    zero_points: npt.NDArray[np.integer],
    block_size: int,
) -> npt.NDArray[np.floating]:
    """Op `com.microsoft::GatherBlockQuantized` of a matrix, by its rows.

    Args:
        codes: integer [rows, columns], unpacked.
        indices: integer [...]; negative ones count from the end, those beyond the table give zeros.
        scales: float [rows, n_blocks].
        zero_points: integer [rows, n_blocks], unpacked.
        block_size: Columns that share a scale.

    Returns:
        [..., columns] of the type of scales: (code - zero_point) * scale, computed in float32.
    """
    rows, columns = codes.shape
    offsets = np.repeat(zero_points.astype(np.int32), block_size, axis=1)[:, :columns]
    scale = np.repeat(scales.astype(np.float32), block_size, axis=1)[:, :columns]
    table = ((codes.astype(np.int32) - offsets).astype(np.float32) * scale).astype(scales.dtype)
    inside = (indices >= -rows) & (indices < rows)
    taken: npt.NDArray[np.floating] = table[np.where(inside, indices, 0)]
    taken[~inside] = 0
    return taken


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


def quantize_linear(x: Float32, scale: np.float32 | float, zero_point: np.uint8 | np.int8) -> npt.NDArray[np.generic]:
    """Round to the nearest code, ties to even, within the range of the type of `zero_point`; a NaN to the lowest."""
    bounds = np.iinfo(zero_point.dtype)
    offset = np.float32(zero_point)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        value = x / np.float32(scale)
    lowest = np.float32(bounds.min) - offset
    value = np.clip(np.where(np.isnan(value), lowest, value), lowest, np.float32(bounds.max) - offset)
    codes: npt.NDArray[np.generic] = (np.rint(value) + offset).astype(zero_point.dtype)
    return codes


def dynamic_quantize_linear(x: Float32) -> tuple[npt.NDArray[np.generic], np.float32, np.uint8]:
    """ONNX's DynamicQuantizeLinear: uint8 over [min(0, min), max(0, max)]; all zeros have a scale of 1.

    Returns:
        Codes of the shape of `x`, their scale and their zero point.
    """
    low = np.float32(min(0, x.min(initial=0)))
    high = np.float32(max(0, x.max(initial=0)))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        scale = np.float32(1) if low == high else np.float32((high - low) / np.float32(255))
        offset = np.float32(0) - low / scale
    # An infinity below zero leaves infinity / infinity, for which ONNX Runtime takes the highest.
    zero_point = np.uint8(255) if np.isnan(offset) else np.uint8(np.rint(np.clip(offset, 0, 255)))
    return quantize_linear(x, scale, zero_point), scale, zero_point


def matmul_int8(
    codes: npt.NDArray[np.generic],
    weight: npt.NDArray[np.generic],
    *,
    scale: np.float32 | float = 1.0,
    zero_point: int = 0,
    weight_scales: Float32 | float = 1.0,
    weight_zero_points: npt.NDArray[np.generic] | int = 0,
    bias: Float32 | None = None,
) -> Float32:
    """Multiply 8-bit activations by an 8-bit weight.

    Args:
        codes: uint8 or int8 [M, K].
        weight: uint8 or int8 [K, N].
        scale: Of the activations.
        zero_point: Of the activations.
        weight_scales: One for all or [N].
        weight_zero_points: One for all or [N].
        bias: float32 [N].

    Returns:
        float32 [M, N]: the sums as int32 (modulo 2**32), rounded to float32, times float32 scales, plus bias.
    """
    sums = (codes.astype(np.int64) - zero_point) @ (weight.astype(np.int64) - np.asarray(weight_zero_points, np.int64))
    factor = np.float32(scale) * np.asarray(weight_scales, np.float32)
    y: Float32 = sums.astype(np.int32).astype(np.float32) * factor
    return y if bias is None else y + bias
