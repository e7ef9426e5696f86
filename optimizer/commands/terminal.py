"""What commands share: the terminal and options that several have."""

from __future__ import annotations

import math
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Annotated, Any, cast

import typer

from ..errors import Interrupted, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from ..planning.result import Progress

_FILE_WIDTH = 160
_EVERY = 10.0  # seconds between lines of progress

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Claim = Annotated[
    str | None,
    typer.Option(help="Families of nodes that it takes, with commas, and --ep; by default what it is faster on."),
]
Dims = Annotated[
    list[str] | None,
    typer.Option("--dim", help="NAME=SIZE of a symbolic dimension, or INPUT:AXIS=SIZE of any open one; repeatable."),
]
Ray = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster that shares the work: auto, local, HOST:PORT or ray://HOST:PORT; the result is the same."
    ),
]
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
    if rest or not 0 < value < 1:
        raise UsageError(f'{option} "{text}": write a share above 0 and below 1, such as 30% or 0.3')
    return value


def pairs_of(items: list[str] | None, option: str) -> dict[str, str]:
    """What options say as NAME=VALUE.

    Raises:
        UsageError: One says nothing like that.
    """
    pairs = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UsageError(f'{option} "{item}": write NAME=VALUE')
        pairs[key] = value
    return pairs


def sizes(items: list[str] | None) -> dict[str, int]:
    """The sizes that options name.

    Raises:
        UsageError: One is no size.
    """
    pairs = pairs_of(items, "--dim")
    for name, value in pairs.items():
        if not value.isdecimal():
            raise UsageError(f'--dim "{name}={value}": the size must be a whole number')
        if int(value) == 0 and "past" not in name.lower():
            raise UsageError(f'--dim "{name}={value}": nothing is computed on no data; only a past may be empty')
    return {name: int(value) for name, value in pairs.items()}


def as_written(context: typer.Context, values: Mapping[str, Any]) -> dict[str, str]:
    """The options of a command that have these values, by parameter: of a flag that is off, the one that says so."""
    return {
        parameter.name: (parameter.secondary_opts if values[parameter.name] is False else parameter.opts)[0]
        for parameter in context.command.params
        if parameter.name in values
    }


class _Trimmed:
    """Standard output without the spaces that fill the lines of a table.

    It is no `io.TextIOBase`, which would flush at the end of the process what is no standard output any more.
    """

    def write(self, text: str) -> int:
        sys.stdout.write(re.sub(" +$", "", text, flags=re.MULTILINE))
        return len(text)

    def flush(self) -> None:
        sys.stdout.flush()


def note_written(path: str | None) -> None:
    """Let an error of standard output tell that a file is there all the same."""
    if path is not None and hasattr(sys.stdout, "done"):
        sys.stdout.done = f"{path} is written"


def console() -> Console:
    """Standard output; names and shapes with brackets are no markup, and a file or a pipe has room for long names."""
    from rich.console import Console

    if sys.stdout.isatty():
        return Console(markup=False, highlight=False)
    return Console(markup=False, highlight=False, width=_FILE_WIDTH, file=cast(IO[str], _Trimmed()))


def progress_lines(clock: Callable[[], float] = time.monotonic) -> Progress:
    """What prints the name of each stage when it begins, and how far it is every ten seconds, to standard error."""
    begun: dict[str, float] = {}
    last = clock()

    def tell(line: str) -> None:
        with suppress(OSError):  # a full disk behind standard error is no reason to stop
            print(line, file=sys.stderr, flush=True)

    def update(stage: str, done: int, total: int) -> None:
        nonlocal last
        now = clock()
        if stage not in begun:
            begun[stage] = last = now
            tell(f"{stage} ...")
        elif now - last >= _EVERY:
            last = now
            share = f" of {total} ({100 * done // total} %)" if done < total else ""  # the whole may not be known
            tell(f"{stage}: {done}{share}, {now - begun[stage]:.0f} s")

    return update


@contextmanager
def kept_in(folder: str | None) -> Iterator[None]:
    """What is written here stays in the folder, if there is one, when the command is stopped; the user is told so."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        if folder is None:
            raise
        code = stop.code if isinstance(stop, SystemExit) else 128 + signal.SIGINT
        raise Interrupted(code, f"{folder} keeps what was finished, and the same command goes on from there") from stop


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Progress]:
    """Progress on standard error: a bar where that is a terminal, else lines, see `progress_lines`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if quiet:
        yield lambda _stage, _done, _total: None
        return
    if not console.is_terminal:
        yield progress_lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield update
