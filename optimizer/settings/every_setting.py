"""All settings that there are, of any scheme."""

from __future__ import annotations

import dataclasses

from .graph_groups import Fusion, Logits, Sparse, TokenLengths, WholeLayers
from .groups import (
    Blocks,
    Calibrated,
    Channels,
    Compensating,
    Floats,
    General,
    Int8Static,
    Int8Weights,
    Judging,
    Mixing,
    Order,
    Ranges,
    Rounding,
    Search,
    Symmetry,
    Training,
    Transforming,
)  # fmt: skip
from .setting import settings_of


@dataclasses.dataclass(frozen=True)
class Settings(
    Sparse,
    TokenLengths,
    WholeLayers,
    Logits,
    Fusion,
    Floats,
    Int8Static,
    Int8Weights,
    Judging,
    Mixing,
    Order,
    Calibrated,
    Ranges,
    Transforming,
    Training,
    Compensating,
    Rounding,
    Blocks,
    Channels,
    Symmetry,
    Search,
    General,
):
    """Of a recipe; what they mean is in `groups` and `graph_groups`, and `onnxpress optimize --help` lists them."""


PER_NODE = tuple(key for key, what in settings_of(Settings).items() if what.per_node)
"""What is settled node by node."""
