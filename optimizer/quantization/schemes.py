"""What a weight can be rounded to, by names: `formats` knows what they mean, and NumPy."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ..errors import SettingError

if TYPE_CHECKING:
    from .formats import Format

KERNEL_SCALES = ("half", "float32", "float16")
"""Of integers, the default first."""
_POWERS_OF_TWO = ("e8m0", "pow2")
SCALE_TYPES = ("float32", "half", "float16", "bfloat16", *_POWERS_OF_TWO)
"""Keys of `formats.SCALE_TYPES`."""


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named scheme.

    Attributes:
        format: Of a weight, a key of `formats.FORMATS`.
        symmetric: Whether it defaults to one fixed zero point, of weights in "weight-only", of activations else.
        family: "weight-only", "static" (activations too, with scales from a calibration), "dynamic" (activations
            too, with a scale from each tensor as it comes), "minifloat-static" and "minifloat-dynamic" (the same with
            floating-point numbers) or "sparse" (blocks of weights that are zero left out).
        block_size: By default; 0 for one scale an output channel.
        scale_types: That scales can have, the default first.
        fixed: Whether the block size is part of the format.
        activations: Their format in "minifloat-static" and "minifloat-dynamic".
    """

    format: str
    symmetric: bool = True
    family: str = "weight-only"
    block_size: int = 32
    scale_types: tuple[str, ...] = KERNEL_SCALES
    fixed: bool = False
    activations: str = ""

    @property
    def integer(self) -> bool:
        """Whether codes are whole numbers."""
        return self.format.startswith("int")


def _by_channel(name: str) -> Preset:
    return Preset(name, block_size=0, scale_types=SCALE_TYPES)


def _in_blocks(name: str) -> Preset:
    """Half the bytes of scales as float32, and nothing lost: the search takes their rounding into account."""
    return Preset(name, scale_types=("bfloat16", *(each for each in SCALE_TYPES if each != "bfloat16")))


def _mx(name: str) -> Preset:
    """A Microscaling format (OCP MX specification 1.0)."""
    return Preset(name, scale_types=("e8m0",), fixed=True)


def _of_both(weights: str, activations: str, family: str = "minifloat-static") -> Preset:
    return Preset(weights, family=family, block_size=0, scale_types=("float32",), activations=activations)


# Asymmetric blocks cost `bits` bits a block and win 0.4 to 2 dB at low widths; at 8 bits nothing is left to win.
SCHEMES = {
    "int2": Preset("int2", False),
    "int3": Preset("int3", False),
    "int4": Preset("int4", False),
    "int5": Preset("int5", False),
    "int6": Preset("int6", False),
    "int8": Preset("int8"),
    "fp8": _by_channel("e4m3fn"),
    "fp8-e3m4": _by_channel("e3m4"),
    "fp8-e5m2": _by_channel("e5m2"),
    "fp6": _by_channel("e2m3"),
    "fp6-e2m3": _by_channel("e2m3"),
    "fp6-e3m2": _by_channel("e3m2"),
    "fp4": _in_blocks("e2m1"),
    "nf4": _in_blocks("nf4"),
    "mxfp8": _mx("e4m3fn"),
    "mxfp6": _mx("e2m3"),
    "mxfp4": _mx("e2m1"),
    "bfp8": Preset("int8", scale_types=_POWERS_OF_TWO),
    "bfp6": Preset("int6", scale_types=_POWERS_OF_TWO),
    "bfp4": Preset("int4", scale_types=_POWERS_OF_TWO),
    "int8-static": Preset("int8", False, "static"),
    "int8-dynamic": Preset("int8", False, "dynamic"),
    "fp8-static": _of_both("e4m3fn", "e4m3fn"),
    "fp8-e3m4-static": _of_both("e3m4", "e3m4"),
    "fp8-e5m2-static": _of_both("e5m2", "e5m2"),
    "fp8-mixed-static": _of_both("e3m4", "e4m3fn"),
    "fp8-dynamic": _of_both("e4m3fn", "e4m3fn", "minifloat-dynamic"),
    "sparse": Preset("int8", family="sparse"),
    "float": Preset("float32", family="float", block_size=0, scale_types=("float32",)),
}


WEIGHT_FORMATS = ("e4m3fn", "e5m2", "e3m4", "e3m2", "e2m3", "e2m1")
"""Of weights beside rounded activations, keys of `formats.FORMATS`."""
ACTIVATION_FORMATS = ("e4m3fn", "e5m2", "e3m4")
FORMAT_ALIASES = {"e4m3": "e4m3fn"}
"""Other names of formats in recipes."""


@dataclasses.dataclass(frozen=True)
class WeightScheme:
    """Codes in blocks along K: weight = (number of the code - zero point) * scale.

    Attributes:
        name: Of the scheme, for people.
        format: What codes stand for, a key of `formats.FORMATS`.
        block_size: Weights that share a scale; 0 for those of an output channel.
        symmetric: No zero points but that of the format.
        search: Search the best scales.
        scale_type: One of `SCALE_TYPES`.
        per_channel: Without blocks, one scale an output channel, not one in all.
        rank: Of a product that is added to a rounded weight, see `low_rank`; 0 for none.
    """

    name: str
    format: str
    block_size: int
    symmetric: bool
    search: bool
    scale_type: str
    per_channel: bool = True
    rank: int = 0

    @property
    def number_format(self) -> Format:
        """The format itself."""
        from .formats import FORMATS

        return FORMATS[self.format]

    @property
    def bits(self) -> int:
        """Of a code."""
        return self.number_format.bits

    @property
    def integer(self) -> bool:
        """Whether codes are whole numbers that can have zero points: MatMulNBits, not MatMulMiniFloat."""
        return self.format.startswith("int")

    @property
    def beside_int8(self) -> bool:
        """Whether it is that of `int8_weights`."""
        return self.format.startswith("within")

    @property
    def has_kernel(self) -> bool:
        """Whether `_kernels.quantize_blocks` rounds to it."""
        return self.integer and self.scale_type in KERNEL_SCALES

    @property
    def takes_factors(self) -> bool:
        """Whether a factor of a weight can go into its scales."""
        return self.has_kernel or self.beside_int8

    def codes_per_block(self, K: int) -> int:
        """Codes in a block of a weight of K inputs."""
        return self.block_size or K

    def blocks(self, K: int) -> int:
        """Blocks along K."""
        return -(-K // self.block_size) if self.block_size else 1


def int8_weights(*, search: bool = True, reduce_range: bool = False, per_channel: bool = True) -> WeightScheme:
    """That of weights beside activations of 8 bits: one scale an output channel, or one in all.

    Args:
        search: Search scales.
        reduce_range: Codes within -63 and 63: two products by a uint8 then fit int16, in which CPUs without VNNI add
            them up. Otherwise within -127 and 127.
        per_channel: One scale an output channel.
    """
    return WeightScheme("int8", "within63" if reduce_range else "within127", 0, True, search, "float32", per_channel)


def weight_scheme(
    name: str, block_size: int | None, symmetric: bool | None, search: bool, scale_type: str | None, per_channel: bool
) -> WeightScheme:
    """The scheme of a name with some settings; None takes its default.

    Raises:
        SettingError: The scheme has no such settings.
    """
    preset = SCHEMES[name]
    block = preset.block_size if block_size is None else block_size
    if preset.fixed and block != preset.block_size:
        raise SettingError("block_size", block, f", but {name} has blocks of {preset.block_size} by definition")
    if block == 0 and preset.integer:
        raise SettingError("block_size", 0, f", one scale a channel, which {name} has not; take 16 to 256")
    if not per_channel and block != 0 and preset.family == "weight-only":
        raise SettingError("per_channel", False, f", but {name} has blocks of {block}", ("block_size", 0))
    scales = scale_type or preset.scale_types[0]
    if scales not in preset.scale_types:
        raise SettingError("scale_type", scales, f", but {name} takes {' or '.join(preset.scale_types)}")
    if symmetric is False and preset.symmetric and (not preset.integer or scales in _POWERS_OF_TWO):
        raise SettingError("symmetric", False, f", but {name} has no zero points")
    return WeightScheme(
        name, preset.format, block, preset.symmetric if symmetric is None else symmetric, search, scales,
        per_channel,
    )  # fmt: skip
