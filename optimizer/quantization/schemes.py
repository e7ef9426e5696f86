"""What a weight can be rounded to."""

from __future__ import annotations

import dataclasses

SCALE_TYPES = ("float32", "float16")


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named scheme.

    Attributes:
        bits: Of a weight.
        symmetric: Whether it defaults to one fixed zero point, of weights in "weight-only", of activations else.
        kind: "weight-only", "static" (activations too, with scales from a calibration), "dynamic" (activations
            too, with a scale from each tensor as it comes) or "sparse" (blocks of weights that are zero left out).
    """

    bits: int
    symmetric: bool
    kind: str = "weight-only"


# Asymmetric blocks cost `bits` bits a block and win 0.4 to 2 dB at low widths; at 8 bits nothing is left to win.
SCHEMES = {
    "int2": Preset(2, False),
    "int3": Preset(3, False),
    "int4": Preset(4, False),
    "int5": Preset(5, False),
    "int6": Preset(6, False),
    "int8": Preset(8, True),
    "int8-static": Preset(8, False, "static"),
    "int8-dynamic": Preset(8, False, "dynamic"),
    "sparse": Preset(8, True, "sparse"),
}


@dataclasses.dataclass(frozen=True)
class WeightScheme:
    """Integer codes in blocks along K: weight = (code - zero_point) * scale.

    Attributes:
        bits: 2 to 8.
        block_size: Weights that share a scale.
        symmetric: Zero point 2**(bits - 1) everywhere.
        search: Search the scale of least squared error.
        scale_type: "float32" or "float16".
    """

    bits: int
    block_size: int
    symmetric: bool
    search: bool
    scale_type: str
