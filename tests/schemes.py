"""Schemes for tests that go over all families, derived, so that a new family is tried as well."""

from __future__ import annotations

from onnxpress.optimizer.quantization.schemes import SCHEMES
from onnxpress.optimizer.settings.families import FAMILY_SETTINGS
from onnxpress.optimizer.settings.recipe import Recipe


def _first_of(family: str) -> str:
    names = [name for name, preset in SCHEMES.items() if preset.family == family]
    return Recipe.scheme if Recipe.scheme in names else names[0]


ONE_A_FAMILY = tuple(_first_of(family.name) for family in FAMILY_SETTINGS)
"""One scheme of each family: the default of recipes, or else the first."""

CALIBRATED = tuple(scheme for scheme in ONE_A_FAMILY if Recipe(scheme=scheme).reads("range_method"))
"""Those that take ranges of tensors from data."""

ROUNDING = tuple(scheme for scheme in ONE_A_FAMILY if scheme != "float")
"""Those that take products with constant weights."""
