"""Command line: parse, call, print. No logic lives here."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import typer

from .errors import OnnxpressError

app = typer.Typer(
    name="onnxpress",
    help="Make ONNX models smaller and faster, and look at what it did to them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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
