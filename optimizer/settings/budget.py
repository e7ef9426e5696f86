"""What a model may cost and how long it may be looked for, as a user writes it: "300MB", "3.5bits", "12ms"; "30m"."""

from __future__ import annotations

import dataclasses
import re

from ..errors import SettingError

BUDGET = "a size such as 300MB, bits per weight such as 3.5bits, or milliseconds such as 12ms"
TIME = "a time such as 90s, 30m or 2h"
_BYTES = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_NUMBER_AND_UNIT = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{0,9})?)\s*([A-Za-z]+)\s*")


@dataclasses.dataclass(frozen=True)
class Budget:
    """A bound.

    Attributes:
        most: Above 0.
        unit: "bytes" of all weights of the model; "bits" per weight that is rounded, scales and zero points counted;
            or "ms" of the products whose weights are rounded, for one row of each.
    """

    most: float
    unit: str


def budget_of(text: str, key: str = "budget") -> Budget:
    """What a text says.

    Raises:
        SettingError: It says no budget.
    """
    number, unit = _split(text)
    if unit in _BYTES:
        number, unit = number * _BYTES[unit], "bytes"
    elif unit == "bit":
        unit = "bits"
    if unit not in ("bytes", "bits", "ms") or not number > 0:
        raise SettingError(key, text, f", must be {BUDGET}")
    return Budget(number, unit)


def seconds_of(text: str, key: str = "search_time") -> float:
    """What a text says.

    Raises:
        SettingError: It says no time.
    """
    number, unit = _split(text)
    if unit not in _SECONDS or not number > 0:
        raise SettingError(key, text, f", must be {TIME}")
    return number * _SECONDS[unit]


def written_budget(key: str, text: str) -> str:
    """The text, where it says a budget.

    Raises:
        SettingError: It does not.
    """
    budget_of(text, key)
    return text


def written_time(key: str, text: str) -> str:
    """The text, where it says a time.

    Raises:
        SettingError: It does not.
    """
    seconds_of(text, key)
    return text


def _split(text: str) -> tuple[float, str]:
    found = _NUMBER_AND_UNIT.fullmatch(text)
    return (float(found[1]), found[2].lower()) if found else (0.0, "")
