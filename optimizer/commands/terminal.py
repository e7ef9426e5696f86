"""What commands share: the terminal and options that several have."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from ..outcome import Progress

_FILE_WIDTH = 160

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]


def share(text: str, option: str) -> float:
    """A share, written as a number or in percent.

    Raises:
        UsageError: It is none, naming the option.
    """
    number, percent, rest = text.partition("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = math.nan
    if rest or not 0 < value <= 1:
        raise UsageError(f'{option} "{text}": write a share such as 1% or 0.01')
    return value


def console() -> Console:
    """Standard output; names and shapes with brackets are no markup, and a file or a pipe has room for long names."""
    from rich.console import Console

    return Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)


def _lines() -> Progress:
    """What prints the name of each stage when it begins."""
    seen: set[str] = set()

    def update(stage: str, _done: int, _total: int) -> None:
        if stage not in seen:
            seen.add(stage)
            print(f"{stage} ...", file=sys.stderr, flush=True)

    return update


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Progress]:
    """Progress on standard error: a bar where that is a terminal, else a line a stage."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if quiet:
        yield lambda _stage, _done, _total: None
        return
    if not console.is_terminal:
        yield _lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield update
