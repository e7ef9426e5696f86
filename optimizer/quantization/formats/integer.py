"""Whole numbers around zero."""

from __future__ import annotations

import dataclasses

import numpy as np

from .base import Codes, Floats, Format


@dataclasses.dataclass(frozen=True)
class Integer(Format):
    """-2^(bits - 1) to 2^(bits - 1) - 1, as codes that are larger by 2^(bits - 1), which is zero's.

    Attributes:
        bits: 2 to 8.
    """

    bits: int

    @property
    def name(self) -> str:  # type: ignore[override]
        """Such as "int4"."""
        return f"int{self.bits}"

    def _values(self) -> Floats:
        values: Floats = np.arange(2**self.bits, dtype=np.float32)
        values -= np.float32(2 ** (self.bits - 1))
        return values

    def round(self, x: Floats) -> Floats:
        """See `Format`."""
        rounded: Floats = np.rint(np.asarray(x, np.float32))
        np.clip(rounded, np.float32(self.min), np.float32(self.max), out=rounded)
        return rounded

    def step(self, x: Floats) -> Floats:
        """See `Format`."""
        return np.ones(x.shape, np.float32)

    def encode(self, x: Floats) -> Codes:
        """See `Format`."""
        codes: Codes = (self.round(x) + np.float32(2 ** (self.bits - 1))).astype(np.uint8)
        return codes


@dataclasses.dataclass(frozen=True)
class Symmetric(Integer):
    """-most to most, as codes of `Integer`: kernels for int8 activations take no code without its opposite.

    Attributes:
        bits: Of a code.
        most: The largest number.
    """

    most: int

    @property
    def name(self) -> str:  # type: ignore[override]
        """Such as "within127"."""
        return f"within{self.most}"

    def _values(self) -> Floats:
        values = super()._values()
        values[np.abs(values) > self.most] = np.nan
        return values
