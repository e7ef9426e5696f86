"""Round to nearest, block by block, with a search for the scale of least squared error."""

from __future__ import annotations

import dataclasses
import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from onnxpress.custom_ops import _kernels

from .schemes import WeightScheme

_COLUMNS_A_TASK = 256  # a multiple of 16, as the kernel asks


@dataclasses.dataclass(frozen=True)
class WeightError:
    """Sums over a weight: squared error, that of plain min/max rounding, and squares of the weight."""

    error: float
    baseline: float
    energy: float

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise ratio in dB."""
        return decibels(self.energy, self.error)

    @property
    def gain(self) -> float:
        """What the scale search won over plain min/max, in dB."""
        return decibels(self.baseline, self.error)


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise); infinite for no noise, 0 for neither."""
    if noise == 0:
        return math.inf if signal > 0 else 0.0
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


@dataclasses.dataclass(frozen=True)
class QuantizedWeight:
    """Codes, scales and zero points of one weight.

    Attributes:
        packed: uint8 [N, n_blocks, block_size * bits / 8], bit planes as in `custom_ops.reference.pack_codes`.
        scales: float32 [N, n_blocks], representable in the scheme's scale_type.
        zero_points: uint8 [N, n_blocks], one code a byte.
        error: What rounding cost.
    """

    packed: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]
    zero_points: npt.NDArray[np.uint8]
    error: WeightError


def quantize_rtn(weight: npt.NDArray[np.floating], scheme: WeightScheme, transposed: bool = False) -> QuantizedWeight:
    """Round a weight to blocks of integer codes.

    Each block's scale is the best of a dozen fractions of its range, each also after one least-squares step for the
    codes it gives (`custom_ops.reference.quantize_block` has the algorithm). The result does not depend on the
    number of threads.

    Args:
        weight: float32 or float16, C-contiguous, [K, N], or [N, K] if `transposed`.
        scheme: Bits, block size and the rest.
        transposed: Whether output channels are the first axis.

    Returns:
        The codes and their error.

    Raises:
        ValueError: The weight has another type, layout or rank.
    """
    N, K = weight.shape if transposed else weight.shape[::-1]
    blocks = -(-K // scheme.block_size)
    packed = np.empty((N, blocks, scheme.block_size * scheme.bits // 8), np.uint8)
    scales = np.empty((N, blocks), np.float32)
    zero_points = np.empty((N, blocks), np.uint8)

    def run(begin: int) -> tuple[float, float, float]:
        return _kernels.quantize_blocks(
            weight, transposed, scheme.bits, scheme.block_size, scheme.symmetric, scheme.search, scheme.scale_type,
            (begin, min(begin + _COLUMNS_A_TASK, N)), packed, scales, zero_points,
        )  # fmt: skip

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        sums = list(pool.map(run, range(0, N, _COLUMNS_A_TASK)))
    totals = [math.fsum(column) for column in zip(*sums, strict=True)]
    return QuantizedWeight(packed, scales, zero_points, WeightError(*totals))


def is_finite(array: npt.NDArray[np.floating]) -> bool:
    """Whether no element is NaN or infinite; float32 or float16."""
    return _kernels.all_finite(np.ascontiguousarray(array))
