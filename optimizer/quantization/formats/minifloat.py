"""Sign, exponent and mantissa in 4 to 8 bits.

A number with the exponent e = max(floor(log2 |x|), e_min) is rounded to a multiple of s = 2^(e - m), for m bits of
mantissa. Adding 1.5 * 2^23 s to it in float32 leaves no bits below s, so

    round(x) = (x + 1.5 * 2^23 s) - 1.5 * 2^23 s,

nearest even as the addition is. Counted in steps from zero, |x| / s + 2^m (e - e_min) is the code without its sign.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
from onnxpress.custom_ops.reference import LAYOUTS, Layout

from .base import Codes, Floats, Format

_EXPONENT = np.uint32(0x7F800000)


@dataclasses.dataclass(frozen=True)
class MiniFloat(Format):
    """A floating-point format; `encode` gives what a cast of ml_dtypes gives, but for numbers beyond the largest.

    Attributes:
        name: As in the attribute `format` of MatMulMiniFloat.
    """

    name: str
    has_kernel: ClassVar[bool] = True

    @property
    def layout(self) -> Layout:
        """Its fields."""
        return LAYOUTS[self.name]

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Of a code."""
        return self.layout.bits

    def _values(self) -> Floats:
        return self.layout.table()

    def _power(self, x: Floats) -> Floats:
        """2^max(floor(log2 |x|), e_min) of finite x."""
        power: Floats = (x.view(np.uint32) & _EXPONENT).view(np.float32)
        np.maximum(power, np.float32(2.0 ** (1 - self.layout.bias)), out=power)
        return power

    def _held(self, x: Floats) -> Floats:
        return np.clip(np.asarray(x, np.float32, order="C"), np.float32(self.min), np.float32(self.max))

    def round(self, x: Floats) -> Floats:
        """See `Format`."""
        held = self._held(x)
        rounder = self._power(held)
        rounder *= np.float32(1.5 * 2.0 ** (23 - self.layout.mantissa))
        held += rounder
        held -= rounder
        return held

    def step(self, x: Floats) -> Floats:
        """See `Format`."""
        step = self._power(self._held(x))
        step *= np.float32(2.0**-self.layout.mantissa)
        return step

    def encode(self, x: Floats) -> Codes:
        """See `Format`."""
        rounded = np.abs(self.round(x))
        power = self._power(rounded)
        binade = (power.view(np.uint32) >> np.uint32(23)).astype(np.int32) - (128 - self.layout.bias)
        steps = (rounded / power * np.float32(2**self.layout.mantissa)).astype(np.int32)
        signs = np.signbit(x).astype(np.int32) << (self.bits - 1)
        codes: Codes = ((binade << self.layout.mantissa) + steps | signs).astype(np.uint8)
        return codes
