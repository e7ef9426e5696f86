"""Keys of recipes that went by other names one version ago: the old ones still work, with a warning."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

from ..errors import FormerNameWarning, UsageError, value_text

Kind = TypeVar("Kind")


@dataclasses.dataclass(frozen=True)
class Former:
    """A key of old.

    Attributes:
        now: The key.
        values: What values are now; others are as they were.
        option: As the command line wrote it.
    """

    now: str
    option: str
    values: Mapping[Any, Any] = dataclasses.field(default_factory=dict)


FORMER = {
    "compensate": Former("method", "--compensate/--no-compensate", {True: "gptq", False: "rtn"}),
    "expect_m": Former("expected_rows", "--expect-m"),
}


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values under the names that keys have now.

    Raises:
        UsageError: A key is there under both names.
    """
    result = {key: value for key, value in values.items() if key not in FORMER}
    for key, former in FORMER.items():
        if key not in values:
            continue
        if former.now in result:
            raise UsageError(f"{key} and {former.now} are the same; leave out {key}")
        value = values[key]
        result[former.now] = former.values.get(value, value) if isinstance(value, bool) else value
        text = (
            f"{key} is deprecated, and gone in the next version: write {former.now} = {value_text(result[former.now])}"
        )
        warnings.warn(text, FormerNameWarning, stacklevel=3)
    return result


def takes_former_names(kind: type[Kind]) -> type[Kind]:
    """A class of settings whose constructor takes keywords of old, too."""
    make = kind.__init__

    @functools.wraps(make)
    def run(self: Any, *values: Any, **settings: Any) -> None:
        make(self, *values, **renamed(settings))

    kind.__init__ = run  # type: ignore[method-assign]
    return kind
