"""Errors that a user can act on: one line that names what is wrong and what to do."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

Kind = TypeVar("Kind")
_ON_COMMAND_LINE = ContextVar("_ON_COMMAND_LINE", default=False)


class OnnxpressError(Exception):
    """The work could not be done; the message is one line for the user. Exit code 1."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as it is, whatever its kind is made of."""
        return _again, (type(self), self.args), self.__dict__


def _again(kind: type[OnnxpressError], args: tuple[object, ...]) -> OnnxpressError:
    error = kind.__new__(kind)
    error.args = args
    return error


class UsageError(OnnxpressError):
    """The request itself is wrong: an unknown option, key, name or value. Exit code 2."""

    exit_code = 2


class FormerNameWarning(FutureWarning):
    """A name of old still works, and the next version will not know it."""


class Interrupted(SystemExit):
    """A command was stopped that keeps what it has written.

    Attributes:
        kept: What is kept, and where, for the user.
    """

    def __init__(self, code: str | int | None, kept: str) -> None:
        self.kept = kept
        super().__init__(code)


@contextmanager
def command_line() -> Iterator[None]:
    """While a command of the terminal runs: messages call settings by its options."""
    token = _ON_COMMAND_LINE.set(True)
    try:
        yield
    finally:
        _ON_COMMAND_LINE.reset(token)


def is_command_line() -> bool:
    """Whether a command of the terminal runs."""
    return _ON_COMMAND_LINE.get()


def option(name: str) -> str:
    """What a setting is called where the request comes from: "--first-and-last", in Python "first_and_last"."""
    return f"--{name}" if _ON_COMMAND_LINE.get() else name.replace("-", "_")


def lacking(what: str, package: str, extra: str) -> str:
    """That something needs a package which is not installed, and how to have it.

    Args:
        what: Needs it, as in "text".
        package: Its name.
        extra: That of ours which it belongs to.
    """
    return f'{what} needs {package}: pip install "onnxpress[{extra}]"'


def first_line(error: BaseException) -> str:
    """What went wrong at the bottom of a chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class SettingError(UsageError):
    """A setting has a value that it cannot have.

    Attributes:
        key: The setting.
        value: Its value.
        problem: What is wrong with it; begins with a comma or a semicolon.
        remedy: Another setting, key and value, with which it may have its value; `Origin` tells how to write that.
    """

    def __init__(self, key: str, value: object, problem: str, remedy: tuple[str, object] | None = None) -> None:
        self.key, self.value, self.problem, self.remedy = key, value, problem, remedy
        super().__init__(f"{key} is {value_text(value)}{problem}")


class SettingsError(UsageError):
    """Settings do not go with the rest of a request, whatever their values.

    Attributes:
        keys: The settings.
        problem: What is wrong; begins with a colon or a comma.
        why: The settings that make it so, named at the end.
    """

    def __init__(self, keys: Collection[str], problem: str, why: Collection[str] = ()) -> None:
        self.keys, self.problem, self.why = tuple(keys), problem, tuple(why)
        super().__init__(f"{', '.join(keys)}{problem}" + (f": {', '.join(why)}" if why else ""))


def named_alone(kind: type[Kind]) -> type[Kind]:
    """A class of settings that raises UsageError for a setting that it does not have."""
    make = kind.__init__

    @functools.wraps(make)
    def checked(self: Any, *values: Any, **settings: Any) -> None:
        known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
        for key in settings:
            if key not in known:
                raise UsageError(f'{kind.__name__} has no setting "{key}"; {suggestion(key, known)}')
        make(self, *values, **settings)

    kind.__init__ = checked  # type: ignore[method-assign]
    return kind


def value_text(value: object) -> str:
    """A value as TOML writes it, where that differs for text and flags, else as Python does."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | str) else repr(value)


def suggestion(word: str, known: Collection[str], listed: str = "there are") -> str:
    """What somebody who wrote this word is most likely to have meant, whatever the case; if that is unclear, all names.

    Args:
        word: Which is none of the names.
        known: The names.
        listed: What leads the list of them.
    """
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), names, n=1)
    return f'did you mean "{names[near[0]]}"?' if near else f"{listed} {', '.join(known)}"
