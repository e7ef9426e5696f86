"""What a weight's codes can stand for, before they are scaled."""

from __future__ import annotations

import abc
import functools
import math
from typing import ClassVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]


class Format(abc.ABC):
    """Some numbers, each with a code of a few bits.

    Methods take arrays of any shape but []. What lies beyond the ends is held to them, infinity as well.
    """

    name: str
    bits: int
    has_kernel: ClassVar[bool] = False
    """Whether `_kernels.rounding_errors` knows it by its name."""

    @functools.cached_property
    def values(self) -> Floats:
        """What each code stands for; float32 [2**bits], NaN or infinite where it is no number."""
        return self._values()

    @functools.cached_property
    def ascending(self) -> Floats:
        """Its numbers, each once."""
        return np.unique(self.values[np.isfinite(self.values)])

    @functools.cached_property
    def max(self) -> float:
        """The largest number."""
        return float(self.ascending[-1])

    @functools.cached_property
    def min(self) -> float:
        """The least number."""
        return float(self.ascending[0])

    @property
    def exponent(self) -> int:
        """floor(log2 max)."""
        return math.frexp(self.max)[1] - 1

    @property
    def zero(self) -> int:
        """The code of zero, which pads blocks."""
        return int(np.flatnonzero(self.values == 0)[0])

    def decode(self, codes: Codes) -> Floats:
        """The numbers that codes stand for."""
        return self.values[codes]

    @abc.abstractmethod
    def _values(self) -> Floats:
        """For `values`."""

    @abc.abstractmethod
    def encode(self, x: Floats) -> Codes:
        """The codes of the nearest numbers, halfway cases to the even code, held within `min` and `max`."""

    @abc.abstractmethod
    def round(self, x: Floats) -> Floats:
        """`decode(encode(x))` but for the sign of zero, in less time."""

    @abc.abstractmethod
    def step(self, x: Floats) -> Floats:
        """The distance of the two numbers around each x: rounding moves it by no more than half of that."""
