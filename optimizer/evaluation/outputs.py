"""How far the outputs of a model are from those of the one that it was made of, output by output.

One number over a tensor that holds boxes to 320 and scores to 1 tells nothing of the scores, so noise is measured for
each channel of the last axis as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..planning.output_error import OutputError
from ..runtime.feeds import is_float

_LEAST_ROWS = 8  # of which a channel's noise is told
_LEAST_ENERGY = 1e-12  # of a channel, relative to the largest, that is no mere rounding of zero
_ROUNDING = {np.dtype(np.float16): 2e-2, np.dtype(np.float64): 1e-5}
_OF_FLOATS = 1e-3
_EQUAL = 0.99  # of elements that are no floats: what is rounded may tip a comparison


def output_errors(names: Sequence[str], wanted: Sequence[Any], found: Sequence[Any]) -> list[OutputError]:
    """The outputs of one run beside those of another; what is no tensor is left out."""
    pairs = zip(names, wanted, found, strict=True)
    return [_error(n, a, b) for n, a, b in pairs if isinstance(a, np.ndarray) and isinstance(b, np.ndarray)]


def _error(name: str, wanted: npt.NDArray[Any], found: npt.NDArray[Any]) -> OutputError:
    if wanted.shape != found.shape:
        return OutputError(name, shapes=(wanted.shape, found.shape))
    if not is_float(wanted.dtype):
        return OutputError(name, equal=float(np.mean(wanted == found)) if wanted.size else 1.0)
    wanted, found = _without_shared_nan(wanted, found)
    sqnr = measure(wanted, found)[0]
    channels = _channels(wanted, found)
    if channels is None or math.isnan(sqnr):
        return OutputError(name, sqnr)
    worst = int(np.argmin(channels))
    return OutputError(name, sqnr, worst, float(channels[worst]), float(np.mean(channels < 0)))


def measure(reference: npt.NDArray[Any], other: npt.NDArray[Any]) -> tuple[float, float]:
    """SQNR in dB and cosine of two arrays of one shape, in float64. NaN in either gives NaN."""
    a, b = reference.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    same = a == b  # infinities that agree are no error
    with np.errstate(invalid="ignore"):
        noise = float(np.square(np.where(same, 0, a - b)).sum())
    finite = np.isfinite(a) & np.isfinite(b)
    signal = float(np.square(a[finite]).sum())
    if math.isnan(noise):
        return math.nan, math.nan
    sqnr = (
        math.inf if noise == 0 else -math.inf if signal == 0 or math.isinf(noise) else 10 * math.log10(signal / noise)
    )
    lengths = math.sqrt(signal * float(np.square(b[finite]).sum()))
    cosine = float(a[finite] @ b[finite]) / lengths if lengths > 0 else float(noise == 0)
    return sqnr, cosine


def _without_shared_nan(wanted: npt.NDArray[Any], found: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """What the original makes of some inputs, a logarithm of what is below zero, is no fault of a conversion."""
    shared = np.isnan(wanted) & np.isnan(found)
    return (np.where(shared, 0, wanted), np.where(shared, 0, found)) if shared.any() else (wanted, found)


def _channels(wanted: npt.NDArray[Any], found: npt.NDArray[Any]) -> npt.NDArray[np.float64] | None:
    """Decibels of the channels of the last axis; infinite of those that are all but zero."""
    size = wanted.shape[-1] if wanted.ndim > 1 else 0
    if size < 2 or wanted.size // size < _LEAST_ROWS:
        return None
    a, b = wanted.reshape(-1, size).astype(np.float64), found.reshape(-1, size).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        noise = np.square(np.where(a == b, 0, a - b)).sum(0)
        signal = np.square(np.where(np.isfinite(a), a, 0)).sum(0)
        ratios = 10 * np.log10(signal / noise)
    told = (signal > _LEAST_ENERGY * signal.max()) & (noise > 0)
    return np.where(told, ratios, np.inf)


def beyond_rounding(names: Sequence[str], wanted: Sequence[Any], found: Sequence[Any]) -> str | None:
    """In which output a model that should give the same numbers does not, as a line; None where it gives them."""
    for name, a, b in zip(names, wanted, found, strict=True):
        if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"output {name} is {b.dtype} {list(b.shape)} instead of {a.dtype} {list(a.shape)}"
        if not is_float(a.dtype):
            if a.size and np.mean(a == b) < _EQUAL:
                return f"output {name} differs in {100 * np.mean(a != b):.0f} % of its elements"
            continue
        off = relative_difference(a, b)
        if not off <= _ROUNDING.get(a.dtype, _OF_FLOATS):
            return f"output {name} differs by {100 * off:.2g} % of its largest number"
    return None


def relative_difference(wanted: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    """The largest difference of two floats, over the largest number; infinite where NaN or infinities differ."""
    a, b = wanted.astype(np.float64), found.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    if not (np.isfinite(a[~same]) & np.isfinite(b[~same])).all():
        return math.inf
    largest = float(np.abs(a[np.isfinite(a)]).max())
    return float(np.abs(a[~same] - b[~same]).max()) / max(largest, float(np.finfo(np.float32).tiny))
