"""What a setting is: its default, the values that it takes and what it means, said once in the field that holds it.

Reading of recipes, checks of what Python gives, options of the command line with their help, and tables of the
documentation are all derived from these fields. The type is the field's annotation.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

from ..errors import SettingError, UsageError, suggestion
from .origin import Origin

_KEY = "setting"
EXPECTED = {bool: "true or false", str: "a string", int: "a whole number", float: "a number"}
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is known of a field beside its name, type and default.

    Attributes:
        help: What it means, for people.
        option: As the command line writes it where that is not "--" and the name with dashes, such as
            "--prune/--no-prune" for a flag; "" where it has no option.
        choices: All values; empty where the type or `parse` says which.
        aliases: Other words for some of the choices.
        several: Whether some of the choices may be given together, with commas.
        parse: The value as it is kept, of one that has the right type.
        expected: The values in words, where the type and `choices` do not say enough.
        per_node: Whether overrides have it for some nodes.
        or_function: Whether Python may give a function.
        is_share: Whether the command line takes percents.
    """

    help: str
    option: str | None = None
    choices: tuple[object, ...] = ()
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    several: bool = False
    parse: Callable[[str, Any], Any] | None = None
    expected: str = ""
    per_node: bool = False
    or_function: bool = False
    is_share: bool = False


def setting(default: T, help: str, **known: Any) -> T:  # noqa: A002
    """A field of a dataclass with what `Setting` holds of it."""
    return dataclasses.field(default=default, metadata={_KEY: Setting(help, **known)})


@cache
def settings_of(kind: type) -> dict[str, Setting]:
    """The settings of a dataclass by name, in its order."""
    return {field.name: field.metadata[_KEY] for field in dataclasses.fields(kind) if _KEY in field.metadata}


@cache
def types_of(kind: type) -> dict[str, type]:
    """The types of the fields of a dataclass: bool, int, float, str or tuple, whatever else they may be in Python."""
    return {name: _type(hint) for name, hint in typing.get_type_hints(kind).items()}


def _type(hint: Any) -> type:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = typing.get_args(hint)[0]
    kind: type = typing.get_origin(hint) or hint
    return kind


def between(low: float, high: float) -> Callable[[str, Any], float]:
    """Numbers above `low` and up to `high`."""

    def parse(key: str, value: Any) -> float:
        if not low < value <= high:
            raise SettingError(key, value, f", must be a number above {low:g} and up to {high:g}")
        return float(value)

    return parse


def least(low: int) -> Callable[[str, Any], int]:
    """Whole numbers from `low` on."""

    def parse(key: str, value: Any) -> int:
        if value < low:
            raise SettingError(key, value, f", must be at least {low}")
        return int(value)

    return parse


def checked(kind: type, values: Mapping[str, Any], origin: Origin) -> dict[str, Any]:
    """The values with every key known and every value of its type; lists become tuples.

    Raises:
        UsageError: A key is unknown, or a value of another type or not among the choices.
    """
    known = settings_of(kind)
    result = {}
    for key, value in values.items():
        if key not in known:
            raise UsageError(f'{origin.text}: unknown key "{key}"; {suggestion(key, list(known), "known keys:")}')
        with origin.stated():
            result[key] = _checked_value(key, value, types_of(kind)[key], known[key])
    return result


def _checked_value(key: str, value: Any, kind: type, what: Setting) -> Any:
    if what.several and isinstance(value, str):
        one = dataclasses.replace(what, several=False)
        words = dict.fromkeys(word.strip() for word in value.split(","))
        return ",".join(_checked_value(key, word, kind, one) for word in words)
    if what.choices:
        if isinstance(value, str) and kind is not str:
            listed = ", ".join(map(str, what.choices))
            raise SettingError(key, value, f", must be {EXPECTED[kind]}: one of {listed}")
        word = value if isinstance(value, str) else ""
        if isinstance(value, bool) or what.aliases.get(word, value) not in what.choices:
            listed = suggestion(word, [str(each) for each in what.choices], "must be one of")
            raise SettingError(key, value, f"; {listed}")
        return value
    if kind is tuple:
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise SettingError(key, value, ", must be a list of strings")
        return tuple(value)
    if what.or_function and callable(value):
        return value
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise SettingError(key, value, f", must be {what.expected or EXPECTED[kind]}")
    return what.parse(key, value) if what.parse is not None else value
