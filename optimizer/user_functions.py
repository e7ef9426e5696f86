"""Functions that users name as "module:function"."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .errors import UsageError


def is_reference(text: str) -> bool:
    """Whether a text has the form "module:function"."""
    module, colon, name = text.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), *name.split(".")])


def written_as(function: str | Callable[..., Any]) -> str:
    """A function's name in the form "module:function", for reports and recipes; a text is its own."""
    if isinstance(function, str):
        return function
    kind = type(function)
    return f"{getattr(function, '__module__', kind.__module__)}:{getattr(function, '__qualname__', kind.__qualname__)}"


def load_function(reference: str) -> Callable[..., Any]:
    """Import a function.

    Args:
        reference: "module:function"; the module may also lie in the current folder.

    Raises:
        UsageError: The text is of another form, the module cannot be imported, or it has no such function.
    """
    if not is_reference(reference):
        raise UsageError(f'"{reference}": write module:function, such as my_data:samples for my_data.py')
    module_name, _, name = reference.partition(":")
    with _current_folder():
        try:
            found: Any = importlib.import_module(module_name)
        except Exception as error:  # the module's own code runs
            raise UsageError(f"{reference}: cannot import {module_name}: {_first_line(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{reference}: {module_name} has no {name}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{reference}: is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def _current_folder() -> Iterator[None]:
    """With modules of the current folder in reach, which an installed command does not have."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)
