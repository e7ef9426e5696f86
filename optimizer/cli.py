"""Command line: parse, call, print. No logic lives here."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import OnnxpressError

if TYPE_CHECKING:
    from .pipeline import Progress

app = typer.Typer(
    name="onnxpress",
    help="Make ONNX models smaller and faster, and look at what it did to them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def _run(entry: Callable[[], object]) -> None:
    """Run `entry` and turn an expected failure into one line and an exit code.

    ONNXPRESS_TRACEBACK=1 shows the traceback instead.
    """
    try:
        entry()
    except OnnxpressError as error:
        if os.environ.get("ONNXPRESS_TRACEBACK") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)


def main() -> None:
    """Entry point of the command `onnxpress`."""
    _run(app)


def optimize_main() -> None:
    """Entry point of the command `optimize`: the same as `onnxpress optimize`."""
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(name="optimize", no_args_is_help=True)(optimize)
    _run(alone)


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    """A progress bar on standard error, when that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda _stage, _done, _total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield update


@app.command()
def optimize(
    model: Annotated[str, typer.Argument(help="A file, a folder of an exported model, or a catalogue name.")],
    output: Annotated[str | None, typer.Option("-o", "--output", help="File to write.")] = None,
    scheme: Annotated[
        str | None, typer.Option(help="int2, int3, int4 (default), int5, int6 or int8.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="TOML file; options given here override it.")] = None,
    block_size: Annotated[int | None, typer.Option(help="Weights that share a scale: 16 to 256.")] = None,
    symmetric: Annotated[
        bool | None, typer.Option("--symmetric/--asymmetric", help="One fixed zero point, or one a block.")
    ] = None,
    search: Annotated[
        bool | None, typer.Option("--search/--no-search", help="Search the best scales.")
    ] = None,
    scale_type: Annotated[str | None, typer.Option(help="float32 or float16.")] = None,
    form: Annotated[str | None, typer.Option(help="qoperator (default), qdq or onnxpress.")] = None,
    accuracy_level: Annotated[
        int | None, typer.Option(help="4: activations rounded to int8 (default); 0 or 1: float32.")
    ] = None,
    embeddings: Annotated[
        bool | None, typer.Option("--embeddings/--no-embeddings", help="Quantize large Gather tables too.")
    ] = None,
    clean_up: Annotated[
        bool | None, typer.Option("--clean-up/--no-clean-up", help="Fold and fuse first.")
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Only nodes whose name matches; repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Not nodes whose name matches; repeatable.")
    ] = None,
    json_: _Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Convert a model to low-bit weights."""
    from rich.console import Console

    from .pipeline import optimize as run
    from .recipe import Recipe

    values = Recipe.from_toml(recipe).to_mapping() if recipe else {}
    given = {
        "scheme": scheme, "block_size": block_size, "symmetric": symmetric, "search": search,
        "scale_type": scale_type, "form": form, "accuracy_level": accuracy_level, "embeddings": embeddings,
        "clean_up": clean_up, "include": include or None, "exclude": exclude or None,
    }  # fmt: skip
    values.update({key: value for key, value in given.items() if value is not None})
    chosen = Recipe.from_mapping(values, "command line")
    with _progress(quiet or json_) as progress:
        report = run(model, chosen, output, progress=progress)
    if json_:
        print(report.to_json())
    elif not quiet:
        report.print(Console())


@app.command()
def models(json_: _Json = False) -> None:
    """List the models that can be named instead of a file."""
    import json

    from onnxpress.models import catalogue
    from rich.console import Console
    from rich.table import Table

    entries = [catalogue.entry(name) for name in catalogue.names()]
    if json_:
        rows = [{"name": e.name, "package": e.package.name, "version": e.package.version} for e in entries]
        print(json.dumps(rows, indent=2))
        return
    table = Table("name", "cached", "download", "licence", "what it is", box=None)
    for e in entries:
        cached = "yes" if catalogue.is_cached(e) else "no"
        table.add_row(e.name, cached, f"{e.package.megabytes} MB", e.package.licence, e.description)
    Console().print(table)


@app.command()
def evaluate(
    model: Annotated[list[str], typer.Argument(help="Files or catalogue names, judged side by side.")],
    task: Annotated[str | None, typer.Option(help="lee, wordsim353, simlex999 or reading; guessed by default.")] = None,
    json_: _Json = False,
) -> None:
    """Judge models by a task with labels."""
    import json

    from onnxpress.models.evaluate import evaluate as run
    from rich.console import Console
    from rich.table import Table

    results = [run(name, task) for name in model]
    if json_:
        print(json.dumps([result._asdict() for result in results], indent=2))
        return
    table = Table("model", "task", "metric", "value", box=None)
    for result in results:
        table.add_row(result.model, result.task, result.metric, f"{result.value:.4f}")
    Console().print(table)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Folder in Hugging Face's layout, or a name on the hub.")],
    output: Annotated[str, typer.Option("-o", "--output", help="Folder to write.")] = "exported",
    task: Annotated[str, typer.Option(help="As optimum names it.")] = "auto",
    opset: Annotated[int | None, typer.Option(help="Opset of the export.")] = None,
) -> None:
    """Export a PyTorch model to ONNX through optimum."""
    from pathlib import Path

    from onnxpress.models.export import export as run

    print(run(model, Path(output), task=task, opset=opset))
