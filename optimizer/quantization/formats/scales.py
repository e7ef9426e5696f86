"""Which numbers a scale can be."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .base import Floats, Format


@dataclasses.dataclass(frozen=True)
class ScaleType:
    """A type of scales, all positive.

    Attributes:
        name: As recipes say it.
        stored: Type of the array that holds them; uint8 for exponents larger by 127.
        least: The least.
        most: The largest.
        power_of_two: Whether there are powers of two alone.
        halves: Whether it is a number of float16 wherever that has a normal one near it, else any.
    """

    name: str
    stored: type
    least: float
    most: float
    power_of_two: bool = False
    halves: bool = False

    def round(self, scale: npt.NDArray[np.floating], weights: Format) -> Floats:
        """The nearest scales with which every code of a format is a finite float32.

        Args:
            scale: Positive, any shape.
            weights: What is scaled.
        """
        most = min(self.most, 2.0 ** (128 - math.frexp(max(weights.max, -weights.min))[1]))
        held = np.clip(scale, np.float32(self.least), np.float32(most))
        if self.power_of_two:
            mantissa, exponent = np.frexp(held)
            held = np.ldexp(np.float32(1), exponent - (mantissa < np.sqrt(0.5)))
        if self.halves:
            held = nearest_halves(held)
        rounded: Floats = held.astype(np.float32 if self.stored is np.uint8 else self.stored).astype(np.float32)
        return rounded

    def store(self, scale: Floats) -> npt.NDArray[Any]:
        """Scales that `round` gave, as an array of the type `stored`."""
        if self.stored is np.uint8:
            return (np.frexp(scale)[1] + 126).astype(np.uint8)
        return scale.astype(self.stored)


def nearest_halves(scale: npt.NDArray[np.floating]) -> Floats:
    """The nearest numbers of float16 where these are normal there, the same as before elsewhere, in float32."""
    with np.errstate(over="ignore", under="ignore"):
        halves = np.asarray(scale, np.float16).astype(np.float32)
    size = np.abs(halves)
    return np.where((size >= _LEAST_HALF) & (size <= _MOST_HALF), halves, np.asarray(scale, np.float32))


_LEAST_HALF, _MOST_HALF = 2.0**-14, 65504.0
_NORMAL = float(np.finfo(np.float32).tiny)  # below, reciprocals in float32 could be infinite

SCALE_TYPES = {
    each.name: each
    for each in (
        ScaleType("float32", np.float32, _NORMAL, 2.0**127),
        ScaleType("half", np.float32, _NORMAL, 2.0**127, halves=True),
        ScaleType("float16", np.float16, 2.0**-24, _MOST_HALF),
        ScaleType("bfloat16", ml_dtypes.bfloat16, _NORMAL, 2.0**127),
        ScaleType("e8m0", np.uint8, 2.0**-127, 2.0**127, power_of_two=True),
        ScaleType("pow2", np.float32, _NORMAL, 2.0**127, power_of_two=True),
    )
}
"""By name: "half" are numbers of float16 stored as float32, which our kernels hold in 16 bits and every runtime reads;
"e8m0" and "pow2" are powers of two, the first stored as an exponent of 8 bits, the second as float32."""
