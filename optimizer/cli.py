"""Command line: the commands together, and how they end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from .commands import analyse, calibrate, catalogue, convert
from .errors import Interrupted, OnnxpressError, UsageError

app = typer.Typer(
    name="onnxpress",
    help="Make ONNX models smaller and faster, and look at what it did to them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _command in (
    convert.optimize, convert.compile, convert.export_mask, catalogue.models, catalogue.evaluate, convert.export,
    calibrate.calibrate, analyse.inspect, analyse.compare, analyse.bench, analyse.bench_kernels, analyse.bench_sparse,
    analyse.study, analyse.study_sparsity,
):  # fmt: skip
    app.command(_command.__name__.replace("_", "-"))(_command)

_INTERRUPTED, _TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


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
            kept = stop.kept if isinstance(stop, Interrupted) else "nothing was written"
            print(f"interrupted; {kept}", file=sys.stderr)
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
    alone.command(name="optimize", no_args_is_help=True)(convert.optimize)
    _run(alone)


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
