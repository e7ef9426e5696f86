"""Ops `onnxpress::MatMulMiniFloat` and `DequantizeMiniFloat`: small floating-point codes, scaled block by block.

A code of a sign, e exponent bits E and m mantissa bits M stands for

    (-1)^sign 2^(max(E, 1) - bias) (min(E, 1) + M / 2^m)

so E = 0 is for subnormal numbers. Formats differ in e, m, bias and in which codes are no numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .codes import _unpack
from .nbits import round_to_bfloat16
from .types import Float32, UInt8


@dataclasses.dataclass(frozen=True)
class Layout:
    """The fields of a code, from the highest bit down: sign, exponent, mantissa.

    Attributes:
        exponent: Bits of the exponent.
        mantissa: Bits of the mantissa.
        bias: What the exponent is larger by than the power of two.
        specials: Which codes are no numbers: "none", "nan" (all ones is NaN), "ieee" (the largest exponent is
            infinity with mantissa 0, else NaN).
    """

    exponent: int
    mantissa: int
    bias: int
    specials: str = "none"

    @property
    def bits(self) -> int:
        """Of a code."""
        return 1 + self.exponent + self.mantissa

    def table(self) -> Float32:
        """What each code stands for; float32 [2**bits], exact."""
        codes = np.arange(2**self.bits)
        mantissa = codes % 2**self.mantissa
        exponent = codes >> self.mantissa & (2**self.exponent - 1)
        power = np.maximum(exponent, 1) - self.bias - self.mantissa
        values = np.ldexp((np.minimum(exponent, 1) << self.mantissa) + mantissa, power)
        largest = exponent == 2**self.exponent - 1
        if self.specials == "nan":
            values[largest & (mantissa == 2**self.mantissa - 1)] = np.nan
        elif self.specials == "ieee":
            values[largest] = np.where(mantissa[largest] == 0, np.inf, np.nan)
        table: Float32 = np.where(codes < 2 ** (self.bits - 1), values, -values).astype(np.float32)
        return table


LAYOUTS = {
    "e4m3fn": Layout(4, 3, 7, "nan"),
    "e5m2": Layout(5, 2, 15, "ieee"),
    "e3m4": Layout(3, 4, 3, "ieee"),
    "e3m2": Layout(3, 2, 3),
    "e2m3": Layout(2, 3, 1),
    "e2m1": Layout(2, 1, 1),
}
"""Formats of sign, exponent and mantissa, by the name in the attribute `format`."""

# Quantiles of a normal distribution, 8 up to 0 and 9 from 0, divided by the largest.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip

MINIFLOATS: dict[str, Float32] = {name: layout.table() for name, layout in LAYOUTS.items()}
MINIFLOATS["nf4"] = np.array(_NF4, np.float32)
"""What each code of a format stands for; float32 [2**bits]. nf4 is that of QLoRA (arXiv 2305.14314, appendix E)."""

E8M0: Float32 = np.append(np.ldexp(np.float32(1), np.arange(-127, 128)), np.nan).astype(np.float32)
"""What each code of a scale of 8 exponent bits stands for; float32 [256], of which 255 is NaN."""


def minifloat_bits(format: str) -> int:
    """Bits of a code: 4, 6 or 8."""
    return int(MINIFLOATS[format].size).bit_length() - 1


def minifloat_zero(format: str) -> int:
    """The code that pads the last block: +0."""
    return 7 if format == "nf4" else 0


def block_codes(block_size: int, K: int) -> int:
    """Codes in a block: all K where `block_size` is 0."""
    return block_size or K


def dequantize_minifloat(
    packed: UInt8,
    scales: npt.NDArray[np.generic],
    *,
    format: str,
    block_size: int,
    K: int,
) -> Float32:
    """Weight that a packed form stands for: decode(code) * scale, with one rounding.

    Args:
        packed: uint8 [N, n_blocks, bytes], the codes of a block as in `pack_codes`.
        scales: float32, float16 or bfloat16 [N, n_blocks], or uint8, codes of `E8M0`.
        format: A key of `MINIFLOATS`.
        block_size: Codes in a block; 0 for one block of K.
        K: Length of the reduction.

    Returns:
        float32 [K, N].
    """
    return _dequantize(MINIFLOATS[format], packed, scales, block_codes(block_size, K), K)


def dequantize_minifloat_tensor(
    codes: UInt8, scales: npt.NDArray[np.generic], *, format: str, shape: Sequence[int], block_size: int = 0
) -> Float32:
    """Op `onnxpress::DequantizeMiniFloat`: a tensor of any axes, decoded and scaled row by row.

    Args:
        codes: uint8 [shape[0], n_blocks, bytes], the codes of a block as in `pack_codes`.
        scales: As in `dequantize_minifloat`.
        format: A key of `MINIFLOATS`.
        shape: Of the tensor. A row is what belongs to an index of the first axis, the others flattened.
        block_size: Codes in a block; 0 for one block a row.

    Returns:
        float32, of that shape.
    """
    weight = dequantize_minifloat(codes, scales, format=format, block_size=block_size, K=math.prod(shape[1:]))
    return np.ascontiguousarray(weight.T).reshape(shape)


def rounding_errors(x: Float32, scales: Float32, growth: Float32, format: str) -> npt.NDArray[np.float64]:
    """What rounding blocks to a format costs, and what the best scale for its codes is made of.

    Args:
        x: float32 [blocks, size], finite.
        scales: float32 [blocks], positive.
        growth: float32 [blocks]: the error of x counts h = 1 + growth x^2.
        format: A key of `MINIFLOATS`.

    Returns:
        float64 [blocks, 4], for q as the number nearest to the float32 x / scale, halfway cases to the even code: the
        sums of (q scale - x)^2, h (q scale - x)^2, h x q and h q q.
    """
    table = MINIFLOATS[format].astype(np.float64)
    codes = np.flatnonzero(np.isfinite(table) & ~((table == 0) & np.signbit(table)))
    codes = codes[np.argsort(table[codes])]
    numbers = table[codes]
    with np.errstate(over="ignore"):
        y = np.clip((x / scales[:, None]).astype(np.float64), numbers[0], numbers[-1])
    above = np.clip(np.searchsorted(numbers, y), 1, numbers.size - 1)
    to_lower, to_upper = np.abs(y - numbers[above - 1]), np.abs(numbers[above] - y)
    lower = (to_lower < to_upper) | ((to_lower == to_upper) & (codes[above - 1] % 2 == 0))
    q = numbers[np.where(lower, above - 1, above)]
    difference = q * scales[:, None] - x
    square, counts = np.square(difference), 1 + growth[:, None].astype(np.float64) * np.square(x, dtype=np.float64)
    terms = (square, counts * square, counts * x * q, counts * q * q)
    return np.stack([term.sum(axis=1) for term in terms], axis=1)


def _dequantize(table: Float32, packed: UInt8, scales: npt.NDArray[np.generic], block_size: int, K: int) -> Float32:
    values = table[_unpack(packed, int(table.size).bit_length() - 1, block_size)]
    factor = E8M0[scales] if scales.dtype == np.uint8 else scales.astype(np.float32)
    weight = values * factor.reshape(*packed.shape[:2], 1)
    return np.ascontiguousarray(weight.reshape(packed.shape[0], -1)[:, :K].T)


def matmul_minifloat(
    A: npt.NDArray[np.floating],
    packed: UInt8,
    scales: npt.NDArray[np.generic],
    bias: npt.NDArray[np.floating] | None = None,
    *,
    format: str,
    block_size: int,
    K: int,
    accuracy_level: int = 0,
) -> npt.NDArray[np.float64]:
    """Op `onnxpress::MatMulMiniFloat`: A @ dequantize_minifloat(B) + bias.

    At accuracy_level 3 the activations are first rounded to bfloat16, as the kernels do on instruction sets that
    multiply bfloat16; so are the values of nf4, where all other formats are exact. On other instruction sets the
    kernels compute level 3 in float32.

    Args:
        A: float [..., K].
        packed: uint8 [N, n_blocks, bytes].
        scales: As in `dequantize_minifloat`.
        bias: float [N] or None.
        format: A key of `MINIFLOATS`.
        block_size: Codes in a block: a multiple of 16, or 0 for one block of K.
        K: Length of the reduction.
        accuracy_level: 3 for bfloat16 activations, anything else for exact ones.

    Returns:
        float64 [..., N].
    """
    rows: npt.NDArray[np.floating] = np.ascontiguousarray(A, np.float32).reshape(-1, K)
    table = MINIFLOATS[format]
    if accuracy_level == 3:
        rows, table = round_to_bfloat16(np.asarray(rows, np.float32)), round_to_bfloat16(table)
    weight = _dequantize(table, packed, scales, block_codes(block_size, K), K)
    result = rows.astype(np.float64) @ weight.astype(np.float64)
    if bias is not None:
        result = result + np.asarray(bias, np.float64)
    return result.reshape(*A.shape[:-1], packed.shape[0])


def round_minifloat(X: Float32, scale: npt.NDArray[np.float32] | float, *, format: str) -> Float32:
    """Op `onnxpress::RoundMiniFloat`: scale * (the number of a format that is nearest to X / scale).

    Of two numbers equally near the one of the even code is taken; what lies beyond the largest, infinity as well, is
    held to it, and NaN stays NaN.

    Args:
        X: float32, any shape.
        scale: Positive, float32 [].
        format: A key of `LAYOUTS`.

    Returns:
        float32, the shape of X.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        x = np.asarray(X, np.float32) / np.float32(scale)
    numbers = MINIFLOATS[format][: 2 ** (minifloat_bits(format) - 1)]
    numbers = numbers[np.isfinite(numbers)].astype(np.float64)
    middles = (numbers[1:] + numbers[:-1]) / 2
    magnitude = np.abs(x).astype(np.float64)
    below, above = (np.searchsorted(middles, magnitude, side) for side in ("left", "right"))
    nearest = np.where(below % 2 == 0, below, above)  # they differ where x is a middle, and one of them is even
    rounded: Float32 = np.copysign(numbers[nearest], x).astype(np.float32) * np.float32(scale)
    return np.where(np.isnan(x), x, rounded)
