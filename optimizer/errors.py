"""Errors that a user can act on: one line that names what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OnnxpressError(Exception):
    """The work could not be done; the message is one line for the user. Exit code 1."""

    exit_code = 1


class UsageError(OnnxpressError):
    """The request itself is wrong: an unknown option, key, name or value. Exit code 2."""

    exit_code = 2


class SettingError(UsageError):
    """A setting has a value that it cannot have.

    Attributes:
        key: The setting.
        value: Its value.
        problem: What is wrong with it; begins with a comma or a semicolon.
    """

    def __init__(self, key: str, value: object, problem: str) -> None:
        super().__init__(f"{key} is {value_text(value)}{problem}")
        self.key, self.value, self.problem = key, value, problem


def value_text(value: object) -> str:
    """A value as TOML writes it, where that differs for numbers and flags, else as Python does."""
    return str(value).lower() if isinstance(value, bool) else repr(value)


def closest(word: str, known: Iterable[str]) -> str | None:
    """What somebody who wrote this word is most likely to have meant, whatever the case; None if that is unclear."""
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), names, n=1)
    return names[near[0]] if near else None
