"""Any numbers in ascending order, such as NF4."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from onnxpress.custom_ops.reference import MINIFLOATS

from .base import Codes, Floats, Format


@dataclasses.dataclass(frozen=True)
class Codebook(Format):
    """A table whose index is the code.

    Attributes:
        name: As in the attribute `format` of MatMulMiniFloat.
    """

    name: str
    has_kernel: ClassVar[bool] = True

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Of a code."""
        return int(self.values.size).bit_length() - 1

    def _values(self) -> Floats:
        return MINIFLOATS[self.name]

    @functools.cached_property
    def _bounds(self) -> npt.NDArray[np.float32]:
        """What lies above bound i belongs to code i + 1; on the bound itself the even one of both takes it.

        A middle that is no float32 gets the float32 below it: none lies between the two.
        """
        wide = self.values.astype(np.float64)
        middles = (wide[1:] + wide[:-1]) / 2
        bounds = middles.astype(np.float32)
        # To code i belongs what is <= bound: a tie goes down to an even i, and else up.
        up = (bounds > middles) | ((bounds == middles) & (np.arange(bounds.size) % 2 == 1))
        return np.where(up, np.nextafter(bounds, np.float32(-np.inf)), bounds)

    def encode(self, x: Floats) -> Codes:
        """See `Format`."""
        held = np.asarray(x, np.float32)
        codes = np.zeros(held.shape, np.uint8)
        for bound in self._bounds:  # a search by halves is several times slower in NumPy
            codes += held > bound
        return codes

    def round(self, x: Floats) -> Floats:
        """See `Format`."""
        return self.values[self.encode(x)]

    def step(self, x: Floats) -> Floats:
        """See `Format`."""
        gaps = np.diff(self.values)
        return gaps[np.clip(np.searchsorted(self.values, np.asarray(x, np.float32)) - 1, 0, gaps.size - 1)]
