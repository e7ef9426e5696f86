"""Which settings each family of schemes reads."""

from __future__ import annotations

import dataclasses

from . import graph_groups as graph
from . import groups as g
from .setting import settings_of


@dataclasses.dataclass(frozen=True)
class FamilySettings:
    """A family of schemes, as far as recipes know it.

    Attributes:
        name: As in `Preset.family`.
        title: For people.
        groups: The dataclasses of the settings that it reads.
    """

    name: str
    title: str
    groups: tuple[type, ...]

    @property
    def keys(self) -> frozenset[str]:
        """The names of the settings."""
        return frozenset(key for group in (g.General, *self.groups) for key in settings_of(group)) | {"overrides"}


FAMILY_SETTINGS = (
    FamilySettings(
        "weight-only", "weights alone",
        (g.Search, g.Symmetry, g.Channels, g.Rounding, g.Compensating, g.Training, g.Order, g.Transforming, g.Mixing,
         g.Judging, g.Blocks, graph.Fusion, graph.Logits),
    ),
    FamilySettings(
        "static", "int8-static",
        (g.Search, g.Symmetry, g.Channels, g.Rounding, g.Ranges, g.Calibrated, g.Judging, g.Int8Weights,
         g.Int8Static),
    ),
    FamilySettings(
        "dynamic", "int8-dynamic",
        (g.Search, g.Int8Weights, g.Transforming, graph.Fusion, graph.Logits, graph.WholeLayers, graph.TokenLengths,
         g.Judging),
    ),
    FamilySettings("minifloat-static", "fp8-static", (g.Search, g.Ranges, g.Calibrated, g.Judging, g.Floats)),
    FamilySettings("minifloat-dynamic", "fp8-dynamic", (g.Search, g.Floats)),
    FamilySettings("float", "float", (graph.Fusion, graph.Logits)),
    FamilySettings("sparse", "sparse", (g.Search, graph.Fusion, g.Ranges, g.Order, graph.Sparse)),
)  # fmt: skip


def readers_of(key: str) -> tuple[FamilySettings, ...]:
    """The families that read a setting."""
    return tuple(family for family in FAMILY_SETTINGS if key in family.keys)


def keys_read_by(name: str) -> frozenset[str]:
    """The settings that a family reads, by its name."""
    (family,) = (each for each in FAMILY_SETTINGS if each.name == name)
    return family.keys
