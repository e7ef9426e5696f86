"""Families of schemes: what each decides about nodes and makes of a model.

`settings.families` says which settings each of them reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .family import Family


def families() -> tuple[Family, ...]:
    """All of them; imported here, since a recipe is read and refused sooner than the first is needed."""
    from . import fused_float, int8_dynamic, minifloat_dynamic
    from .calibrated.convert import INT8_STATIC, MINIFLOAT_STATIC
    from .sparse import convert as sparse
    from .weight_only import convert as weight_only

    return (
        weight_only.FAMILY, INT8_STATIC, int8_dynamic.FAMILY, MINIFLOAT_STATIC, minifloat_dynamic.FAMILY, sparse.FAMILY,
        fused_float.FAMILY,
    )  # fmt: skip


def family_of(name: str) -> Family:
    """The family of a name, as in `Recipe.family`."""
    (found,) = (family for family in families() if family.name == name)
    return found
