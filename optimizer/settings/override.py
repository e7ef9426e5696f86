"""What a recipe says about some nodes in place of its own settings."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import UsageError, named_alone, suggestion
from .every_setting import PER_NODE, Settings
from .origin import Origin
from .setting import EXPECTED, checked


@named_alone
@dataclasses.dataclass(frozen=True)
class Override:
    """Settings for the nodes that match both patterns; None leaves the recipe's value.

    Attributes:
        match: The node's name, or a glob pattern on it, as in `Settings.include`.
        op_type: Operator, such as "Gemm".
        keep_float: Leave these nodes alone.

    The others are as in `Settings`.
    """

    match: str | None = None
    op_type: str | None = None
    keep_float: bool = False
    scheme: str | None = None
    block_size: int | None = None
    symmetric: bool | None = None
    search: bool | None = None
    scale_type: str | None = None
    accuracy_level: int | None = None
    rank: int | None = None
    sparsity: float | None = None
    weight_format: str | None = None
    activation_format: str | None = None

    def __post_init__(self) -> None:
        """Check all values.

        Raises:
            UsageError: There is no pattern, or a value is of the wrong type or not among the choices.
        """
        self._check(Origin("override"))

    def _check(self, origin: Origin) -> None:
        for key, kind in (("match", str), ("op_type", str), ("keep_float", bool)):
            value = getattr(self, key)
            if value is not None and not isinstance(value, kind):
                raise origin.error(key, value, f", must be {EXPECTED[kind]}")
        checked(Settings, self.given(), origin)
        if self.match is None and self.op_type is None:
            raise UsageError(f"{origin.text}: give match (a pattern on node names) or op_type")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], origin: Origin) -> Override:
        """Build one from plain values, as TOML and JSON give them.

        Raises:
            UsageError: An unknown key, or a value of the wrong type or not among the choices.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values.keys() - set(known):
            raise UsageError(f'{origin.text}: unknown key "{key}"; {suggestion(key, known, "known keys:")}')
        built = object.__new__(cls)
        for field in dataclasses.fields(cls):
            object.__setattr__(built, field.name, values.get(field.name, field.default))
        built._check(origin)
        return built

    def applies(self, names: Collection[str], op_type: str) -> bool:
        """Whether the node of these names and this type is meant."""
        return (self.match is None or matches(self.match, names)) and self.op_type in (None, op_type)

    def given(self) -> dict[str, Any]:
        """The settings that it changes."""
        return {key: value for key in PER_NODE if (value := getattr(self, key)) is not None}

    def describe(self) -> str:
        """The patterns, as a user wrote them."""
        parts = [f'{key} = "{value}"' for key in ("match", "op_type") if (value := getattr(self, key)) is not None]
        return ", ".join(parts)


def matches(pattern: str, names: Collection[str]) -> bool:
    """Whether a pattern is, or matches, one of the names; these may hold brackets themselves."""
    return pattern in names or any(fnmatch.fnmatchcase(name, pattern) for name in names)
