"""Command line: the commands together."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import UsageError
from . import analyse, calibrate, catalogue, convert, study_lengths

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
    analyse.study, analyse.study_sparsity, study_lengths.study_lengths,
):  # fmt: skip
    app.command(_command.__name__.replace("_", "-"))(_command)


def onnxpress() -> None:
    """Run the command `onnxpress` with the arguments of the process; exits.

    Raises:
        OnnxpressError: What could not be done.
    """
    _check_isa()
    app()


def optimize() -> None:
    """Run the command `optimize`, the same as `onnxpress optimize`; exits.

    Raises:
        OnnxpressError: What could not be done.
    """
    _check_isa()
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(name="optimize", no_args_is_help=True)(convert.optimize)
    alone()


def _check_isa() -> None:
    """A wrong setting is told at once and as such, and not by what happens to need it."""
    from onnxpress.custom_ops import _kernels

    try:
        _kernels.chosen_isa()
    except RuntimeError as error:
        raise UsageError(str(error)) from error


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
