"""Options of the command line for the settings of a recipe, made from what `settings` says of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from ..settings.families import FAMILY_SETTINGS, readers_of
from ..settings.former import FORMER, Former
from ..settings.recipe import Recipe
from ..settings.setting import Setting, settings_of, types_of
from .terminal import share


def options_of(*keys: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: the command takes these settings as options, all of a recipe where none is named.

    The command's last parameter is `settings`, which gets those that were given, by key.
    """
    names = keys or tuple(settings_of(Recipe))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())
        kept = [parameter for parameter in own if parameter.name != "settings"]
        former = {name: old for name, old in FORMER.items() if old.now in names}
        made = [_parameter(name) for name in names] + [_former(name, old) for name, old in former.items()]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            values = {name: given.pop(name) for name in (*names, *former)}
            command(**given, settings=_given(values))

        # Both are what typer reads.
        run.__signature__ = inspect.Signature([*kept, *made])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*kept, *made)}
        return run

    return decorate


def _parameter(name: str) -> inspect.Parameter:
    what, kind = settings_of(Recipe)[name], types_of(Recipe)[name]
    written: Any = list[str] if kind is tuple else str if what.is_share else kind
    option = typer.Option(
        *([what.option] if what.option else []),
        help=what.help,
        rich_help_panel=_panel(name),
        show_default=_default_text(name, what),
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[written | None, option]
    )


def _default_text(name: str, what: Setting) -> str | bool:
    """The default as help shows it, of a flag the option that says the same; nothing where the help itself tells."""
    default = getattr(Recipe, name)
    if isinstance(default, bool):
        on, _, off = (what.option or "").partition("/")
        return on if default else off
    return str(default) if default not in (None, ()) else False


def _former(name: str, old: Former) -> inspect.Parameter:
    """The option of a setting's name of old, which no help lists."""
    kind = bool if old.values else types_of(Recipe)[old.now]
    annotation = Annotated[kind | None, typer.Option(old.option, hidden=True)]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _panel(name: str) -> str | None:
    """Who reads a setting; None where every scheme does."""
    readers = readers_of(name)
    if len(readers) == len(FAMILY_SETTINGS):
        return None
    titles = [family.title for family in readers]
    return f"Of {', '.join(titles[:-1])} and {titles[-1]}" if len(titles) > 1 else f"Of {titles[0]}"


def _given(values: dict[str, Any]) -> dict[str, Any]:
    known: dict[str, Setting] = settings_of(Recipe)
    return {
        name: share(value, _written(name)) if name in known and known[name].is_share else value
        for name, value in values.items()
        if value is not None and value != []
    }


def _written(name: str) -> str:
    return f"--{name.replace('_', '-')}"
