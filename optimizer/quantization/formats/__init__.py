"""Formats of a weight's codes and of their scales, each an object that rounds arrays."""

from __future__ import annotations

from .base import Format
from .codebook import Codebook
from .integer import Integer, Symmetric
from .minifloat import MiniFloat
from .scales import SCALE_TYPES, ScaleType
from .search import find_scales

FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        *(Integer(bits) for bits in range(2, 9)),
        *(Symmetric(8, most) for most in (63, 127)),
        *(MiniFloat(name) for name in ("e4m3fn", "e5m2", "e3m4", "e3m2", "e2m3", "e2m1")),
        Codebook("nf4"),
    )
}
"""By name."""

__all__ = ["FORMATS", "SCALE_TYPES", "Codebook", "Format", "Integer", "MiniFloat", "ScaleType", "find_scales"]
