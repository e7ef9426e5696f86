"""Round to nearest, block by block, with a search for the scale that costs least."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from onnxpress.custom_ops import _kernels, reference

from .cancel import cancel
from .formats import SCALE_TYPES, find_scales
from .quantized_weight import QuantizedWeight, WeightError
from .schemes import WeightScheme
from .threads import threads

Floats = npt.NDArray[np.float32]

_COLUMNS_A_TASK = 256  # a multiple of 16, as the kernel asks
_ELEMENTS_A_TASK = 1 << 18  # fewer, and the calls of NumPy cost more than they do; more leave the caches


def quantize_rtn(
    weight: npt.NDArray[np.floating],
    scheme: WeightScheme,
    transposed: bool = False,
    *,
    convolution: bool = False,
    importance: Floats | None = None,
) -> QuantizedWeight:
    """Round a weight to blocks of codes of any format.

    Integers have zero points where the scheme is asymmetric, and their blocks' scales are the best of a few near that
    of minimum and maximum (`custom_ops.reference.quantize_block` has the algorithm). All else is rounded about zero,
    see `find_scales`. Without data the search lets the errors of a convolution `cancel`. The result does not depend on
    the number of threads.

    Args:
        weight: float32 or float16, finite, C-contiguous, [K, N], or [N, K] if `transposed`.
        scheme: Format, block size and the rest.
        transposed: Whether output channels are the first axis.
        convolution: Whether inputs are those of a convolution, which have a sign in common; for formats without a
            kernel.
        importance: [K], what the squared error of each input's weights counts in the search, where data tells it.

    Returns:
        The codes and their error.

    Raises:
        ValueError: The weight has another type, layout or rank.
    """
    if scheme.has_kernel:
        return _by_kernel(weight, scheme, transposed, importance)
    cancels = convolution and scheme.search and importance is None
    return _by_format(weight, scheme, transposed, importance, convolution=convolution, cancels=cancels)


def _by_format(
    weight: npt.NDArray[np.floating], scheme: WeightScheme, transposed: bool, importance: Floats | None, *,
    convolution: bool, cancels: bool,
) -> QuantizedWeight:  # fmt: skip
    N, K = weight.shape if transposed else weight.shape[::-1]
    blocks, size = scheme.blocks(K), reference.packed_bytes(scheme.codes_per_block(K), scheme.bits)
    packed = np.empty((N, blocks, size), np.uint8)
    scales = np.empty((N, blocks), np.float32)

    def run(begin: int, end: int) -> tuple[float, ...]:
        part = weight[begin:end] if transposed else weight[:, begin:end].T
        codes, scales[begin:end], sums = _round_channels(
            part.astype(np.float32), scheme, importance, convolution=convolution, cancels=cancels
        )
        packed[begin:end] = _kernels.pack_zero_points(codes, scheme.bits).reshape(end - begin, blocks, size)
        return sums

    one_in_all = not scheme.per_channel and scheme.block_size == 0
    sums = _in_parallel(run, N, N if one_in_all else max(1, _ELEMENTS_A_TASK // K))
    zeros = np.full((N, blocks), scheme.number_format.zero, np.uint8)
    axis = 0 if transposed else 1
    return QuantizedWeight(scheme, weight.shape, axis, packed, scales, zeros, WeightError(*sums))


def _round_channels(
    part: Floats, scheme: WeightScheme, importance: Floats | None, *, convolution: bool, cancels: bool
) -> tuple[npt.NDArray[np.uint8], Floats, tuple[float, ...]]:
    """Codes [n * n_blocks, block], scales [n, n_blocks] and the sums of `WeightError` of output channels [n, K]."""
    n, K = part.shape
    block, blocks, numbers = scheme.codes_per_block(K), scheme.blocks(K), scheme.number_format
    x: Floats = np.ascontiguousarray(np.pad(part, [(0, 0), (0, blocks * block - K)])).reshape(-1, block)
    rows = x if scheme.per_channel or scheme.block_size else x.reshape(1, -1)
    kind = SCALE_TYPES[scheme.scale_type]
    counts = None
    if importance is not None:
        padded = np.pad(importance, (0, blocks * block - K)).reshape(blocks, block)
        counts = np.broadcast_to(padded, (n, blocks, block)).reshape(rows.shape)
    found = find_scales(rows, numbers, kind, search=scheme.search, convolution=convolution, counts=counts)
    scale = np.ascontiguousarray(np.broadcast_to(found.scales, len(x)))
    codes = np.empty(x.shape, np.uint8)
    step = max(1, _ELEMENTS_A_TASK // block)
    for piece in (slice(begin, begin + step) for begin in range(0, len(x), step)):
        with np.errstate(over="ignore"):  # what is infinite is held to the largest
            scaled: Floats = x[piece] / scale[piece, None]
        codes[piece] = numbers.encode(scaled)
    error = math.fsum(found.error)
    if cancels:
        spread = np.repeat(scale.reshape(n, blocks), block, axis=1)[:, :K]
        whole = codes.reshape(n, -1)
        moved = cancel(numbers.decode(whole[:, :K]), part, spread, numbers.ascending)
        whole[:, :K] = numbers.encode(moved)
        error = float(np.square(moved * spread.astype(np.float64) - part).sum())
    energy = float(np.square(rows, dtype=np.float64).sum())
    return codes, scale.reshape(n, blocks), (error, math.fsum(found.cost), math.fsum(found.baseline), energy)


def _by_kernel(
    weight: npt.NDArray[np.floating], scheme: WeightScheme, transposed: bool, importance: Floats | None
) -> QuantizedWeight:
    N, K = weight.shape if transposed else weight.shape[::-1]
    blocks = scheme.blocks(K)
    packed = np.empty((N, blocks, scheme.block_size * scheme.bits // 8), np.uint8)
    scales = np.empty((N, blocks), np.float32)
    zero_points = np.empty((N, blocks), np.uint8)

    def run(begin: int, end: int) -> tuple[float, ...]:
        return _kernels.quantize_blocks(
            weight, transposed, scheme.bits, scheme.block_size, scheme.symmetric, scheme.search, scheme.scale_type,
            (begin, end), packed, scales, zero_points, importance,
        )  # fmt: skip

    sums = _in_parallel(run, N, _COLUMNS_A_TASK)
    axis = 0 if transposed else 1
    return QuantizedWeight(scheme, weight.shape, axis, packed, scales, zero_points, WeightError(*sums))


def _in_parallel(run: Callable[[int, int], tuple[float, ...]], count: int, step: int) -> list[float]:
    """Sums over what `run` gives for ranges of output channels."""
    ranges = [(begin, min(begin + step, count)) for begin in range(0, count, step)]
    if len(ranges) == 1:
        return list(run(*ranges[0]))  # a thread takes longer to start than most small weights to round
    with ThreadPoolExecutor(threads()) as pool:
        sums = list(pool.map(lambda each: run(*each), ranges))
    return [math.fsum(column) for column in zip(*sums, strict=True)]


def is_finite(array: npt.NDArray[np.floating]) -> bool:
    """Whether no element is NaN or infinite; float32 or float16."""
    return _kernels.all_finite(np.ascontiguousarray(array))
