"""Command line: parse, call, print. No logic lives here."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import OnnxpressError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from .pipeline import Progress

app = typer.Typer(
    name="onnxpress",
    help="Make ONNX models smaller and faster, and look at what it did to them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_FILE_WIDTH = 160
_INTERRUPTED, _TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM

_Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def _run(entry: Callable[[], object]) -> None:
    """Run `entry` and turn an expected failure into one line and an exit code.

    ONNXPRESS_TRACEBACK=1 shows the traceback instead. Ctrl-C and a request to terminate unwind: temporary files go.
    """
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(_TERMINATED))
    try:
        _check_isa()
        entry()
    except OnnxpressError as error:
        if os.environ.get("ONNXPRESS_TRACEBACK") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit) as stop:
        code = stop.code if isinstance(stop, SystemExit) else _INTERRUPTED  # typer turns the one into the other
        if code in (_INTERRUPTED, _TERMINATED):
            print("interrupted; nothing was written", file=sys.stderr)
        sys.exit(code)


def _check_isa() -> None:
    """A wrong setting is told at once and as such, and not by what happens to need it."""
    from onnxpress.custom_ops import _kernels

    try:
        _kernels.chosen_isa()
    except RuntimeError as error:
        raise UsageError(str(error)) from error


def main() -> None:
    """Entry point of the command `onnxpress`."""
    _run(app)


def optimize_main() -> None:
    """Entry point of the command `optimize`: the same as `onnxpress optimize`."""
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(name="optimize", no_args_is_help=True)(optimize)
    _run(alone)


def _console() -> Console:
    """Standard output; names and shapes with brackets are no markup, and a file or a pipe has room for long names."""
    from rich.console import Console

    return Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)


def _show_version(asked: bool) -> None:
    """Print the versions that a report of a problem needs."""
    if not asked:
        return
    from importlib.metadata import version

    print(f"onnxpress {version('onnxpress')}, ONNX Runtime {version('onnxruntime')}, onnx {version('onnx')}")
    raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print versions and exit.")
    ] = False,
) -> None:
    pass


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
    scheme: Annotated[str | None, typer.Option(help="int2, int3, int4 (default), int5, int6 or int8.")] = None,
    recipe: Annotated[str | None, typer.Option(help="TOML file; options given here override it.")] = None,
    block_size: Annotated[int | None, typer.Option(help="Weights that share a scale: 16 to 256.")] = None,
    symmetric: Annotated[
        bool | None, typer.Option("--symmetric/--asymmetric", help="One fixed zero point, or one a block.")
    ] = None,
    search: Annotated[bool | None, typer.Option("--search/--no-search", help="Search the best scales.")] = None,
    scale_type: Annotated[str | None, typer.Option(help="float32 or float16.")] = None,
    form: Annotated[str | None, typer.Option(help="qoperator (default), qdq or onnxpress.")] = None,
    accuracy_level: Annotated[
        int | None, typer.Option(help="4: activations rounded to int8 (default); 3: to bfloat16; 0 or 1: float32.")
    ] = None,
    embeddings: Annotated[
        bool | None, typer.Option("--embeddings/--no-embeddings", help="Quantize large Gather tables too.")
    ] = None,
    clean_up: Annotated[bool | None, typer.Option("--clean-up/--no-clean-up", help="Fold and fuse first.")] = None,
    include: Annotated[list[str] | None, typer.Option(help="Only nodes whose name matches; repeatable.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Not nodes whose name matches; repeatable.")] = None,
    json_: _Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Convert a model to low-bit weights."""
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
        report.print(_console())


@app.command("compile")
def compile_(
    model: Annotated[str, typer.Argument(help="A file, a folder of an exported model, or a catalogue name.")],
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="File to write; NAME.ctx.onnx by default.")
    ] = None,
    accuracy_level: Annotated[
        int | None, typer.Option(help="4: activations rounded to int8; 0 or 1: float32; the nodes' own by default.")
    ] = None,
    claim: Annotated[str | None, typer.Option(help="Families of nodes to take, with commas; all by default.")] = None,
    json_: _Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Pack the weights of a low-bit model for the execution provider once, so that sessions map them."""
    from .context import compile_context as run

    report = run(model, output, accuracy_level=accuracy_level, claim=claim)
    if json_:
        print(report.to_json())
    elif not quiet:
        report.print(_console())


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="Print the path of this one, fetched if it is not yet.")] = None,
    json_: _Json = False,
) -> None:
    """List the models that can be named instead of a file."""
    import json

    from onnxpress.models import catalogue
    from rich.table import Table

    if name is not None:
        path = str(catalogue.path(name))
        print(json.dumps({"name": name, "path": path}) if json_ else path)
        return
    entries = [catalogue.entry(known) for known in catalogue.names()]
    if json_:
        print(json.dumps([e.to_mapping() for e in entries], indent=2))
        return
    table = Table("name", "cached", "download", "licence", "task", "what it is", box=None)
    for e in entries:
        cached = "yes" if e.is_cached else "no"
        table.add_row(e.name, cached, f"{e.package.megabytes} MB", e.package.licence, e.task or "", e.description)
    _console().print(table)


@app.command()
def evaluate(
    model: Annotated[list[str], typer.Argument(help="Files or catalogue names, judged side by side.")],
    task: Annotated[str | None, typer.Option(help="lee, wordsim353, simlex999 or reading; guessed by default.")] = None,
    json_: _Json = False,
) -> None:
    """Judge models by a task with labels; the first is what the others are compared with."""
    import dataclasses
    import json

    from onnxpress.models.evaluate import evaluate as run
    from rich.table import Table

    results = [run(name, task) for name in model]
    if json_:
        print(json.dumps([dataclasses.asdict(result) for result in results], indent=2))
        return
    table = Table("model", "task", "metric", "value", "change", "also", box=None)
    for result in results:
        same = result is not results[0] and result.task == results[0].task
        change = f"{result.value - results[0].value:+.4f}" if same else ""
        others = {name: value for name, value in result.details.items() if name != result.metric.lower()}
        also = ", ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in others.items())
        table.add_row(result.model, result.task, result.metric, f"{result.value:.4f}", change, also)
    _console().print(table)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Folder in Hugging Face's layout, or a name on the hub.")],
    output: Annotated[str | None, typer.Option("-o", "--output", help="Folder to write; NAME-onnx by default.")] = None,
    task: Annotated[str, typer.Option(help="As optimum names it, such as feature-extraction.")] = "auto",
    opset: Annotated[int | None, typer.Option(help="Opset of the export.")] = None,
) -> None:
    """Export a PyTorch model to ONNX through optimum."""
    from onnxpress.models.export import export as run

    print(run(model, output, task=task, opset=opset))


_Dims = Annotated[list[str] | None, typer.Option("--dim", help="NAME=SIZE of a symbolic dimension; repeatable.")]
_Plot = Annotated[str | None, typer.Option(help="PNG file to write.")]


def _pairs(items: list[str] | None, option: str) -> dict[str, str]:
    pairs = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UsageError(f'{option} "{item}": write NAME=VALUE')
        pairs[key] = value
    return pairs


def _sizes(items: list[str] | None) -> dict[str, int]:
    pairs = _pairs(items, "--dim")
    for name, value in pairs.items():
        if not value.isdecimal():
            raise UsageError(f'--dim "{name}={value}": the size must be a whole number')
    return {name: int(value) for name, value in pairs.items()}


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="A file, a folder or a catalogue name.")],
    scheme: Annotated[str, typer.Option(help="The scheme to ask about.")] = "int4",
    nodes: Annotated[bool, typer.Option("--nodes", help="List every node rather than counts.")] = False,
    json_: _Json = False,
) -> None:
    """Show what is in a model, and what a scheme would take of it."""
    from .analysis.inspect import inspect as run
    from .recipe import Recipe

    result = run(model, Recipe.from_mapping({"scheme": scheme}, "command line"))
    if json_:
        print(result.to_json())
    else:
        result.print(_console(), nodes=nodes)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="The reference: a file, a folder or a catalogue name.")],
    second: Annotated[str, typer.Argument(help="The model to judge.")],
    data: Annotated[str, typer.Option(help="An .npz file of inputs, or random.")] = "random",
    dim: _Dims = None,
    top: Annotated[int, typer.Option(min=1, help="Inner tensors to list.")] = 20,
    plot: _Plot = None,
    json_: _Json = False,
) -> None:
    """Compare two models tensor by tensor, to find the layer that hurts."""
    from .analysis.compare import compare as run

    with _progress(json_) as progress:
        result = run(first, second, data=None if data == "random" else data, dims=_sizes(dim), progress=progress)
    if plot:
        from .analysis.plots import plot_comparison

        plot_comparison(result, plot)
    if json_:
        print(result.to_json())
    else:
        result.print(_console(), top)


@app.command()
def bench(
    model: Annotated[list[str], typer.Argument(help="Files, folders or catalogue names; the first is the base.")],
    batch: Annotated[int, typer.Option(min=1, help="Size of dimensions named batch.")] = 1,
    seq: Annotated[int, typer.Option(min=1, help="Size of dimensions named sequence.")] = 128,
    past: Annotated[int, typer.Option(min=0, help="Size of dimensions named past.")] = 0,
    dim: _Dims = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Intra-op threads; all cores by default.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each model.")] = 9,
    ort_option: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE of ONNX Runtime's session configuration; repeatable.")
    ] = None,
    ep: Annotated[bool, typer.Option("--ep", help="Each model a second time, on our execution provider.")] = False,
    plot: _Plot = None,
    json_: _Json = False,
) -> None:
    """Time models side by side in ONNX Runtime."""
    from .analysis.bench import bench as run

    dims = {"batch": batch, "sequence": seq, "past": past, **_sizes(dim)}
    with _progress(json_) as progress:
        result = run(
            model, dims=dims, threads=threads, rounds=rounds, config=_pairs(ort_option, "--ort-option"),
            provider=ep, progress=progress,
        )  # fmt: skip
    if plot:
        from .analysis.plots import plot_benchmark

        plot_benchmark(result, plot)
    if json_:
        print(result.to_json())
    else:
        result.print(_console())


@app.command("bench-kernels")
def bench_kernels(
    shape: Annotated[list[str] | None, typer.Option(help="KxN of a weight; repeatable.")] = None,
    rows: Annotated[list[int] | None, typer.Option("--rows", "-m", min=1, help="Rows M; repeatable.")] = None,
    op: Annotated[str, typer.Option(help="matmul_nbits, qdq_matmul or dynamic_matmul.")] = "matmul_nbits",
    bits: Annotated[int, typer.Option(help="2, 4 or 8, of matmul_nbits.")] = 4,
    block_size: Annotated[int, typer.Option(help="A power of two from 16, of matmul_nbits.")] = 32,
    accuracy_level: Annotated[int, typer.Option(min=0, max=4, help="Of both sides.")] = 4,
    asymmetric: Annotated[bool, typer.Option("--asymmetric", help="With zero points.")] = False,
    cold: Annotated[int, typer.Option(min=0, help="MB of weights at least, so that they come from memory.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Intra-op threads; all cores by default.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each side.")] = 5,
    plot: _Plot = None,
    json_: _Json = False,
) -> None:
    """Time products of ONNX Runtime and ours, against what the machine could do."""
    from .analysis import bench_kernels as kernels
    from .analysis.kernel_models import OPS, Case

    if op not in OPS:
        raise UsageError(f'--op "{op}": there are {", ".join(OPS)}')
    shapes = [_shape(text) for text in shape] if shape else kernels.SHAPES
    kind = (bits, block_size) if op == "matmul_nbits" else (8, 0)
    cases = [Case(m, k, n, *kind, op) for k, n in shapes for m in rows or kernels.ROWS]
    with _progress(json_) as progress:
        result = kernels.bench_kernels(
            cases, accuracy_level=accuracy_level, symmetric=not asymmetric, threads=threads, rounds=rounds,
            cold=cold * 10**6, progress=progress,
        )  # fmt: skip
    if plot:
        from .analysis.plots import plot_kernels

        plot_kernels(result, plot)
    if json_:
        print(result.to_json())
    else:
        result.print(_console())


def _shape(text: str) -> tuple[int, int]:
    sizes = text.lower().split("x")
    if len(sizes) != 2 or not all(size.isdecimal() and 0 < int(size) < 2**31 for size in sizes):
        raise UsageError(f"--shape {text}: expected KxN, such as 4096x14336")
    return int(sizes[0]), int(sizes[1])
