"""Command line: how commands begin and end.

What they need is imported late, so that nobody who interrupts a command at its start meets a traceback.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

_INTERRUPTED, _TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
_AGAIN = 0.02  # seconds after which a signal that came within an import is looked at again

Code = str | int | None


def main() -> None:
    """Entry point of the command `onnxpress`."""
    _run("onnxpress")


def optimize_main() -> None:
    """Entry point of the command `optimize`: the same as `onnxpress optimize`."""
    _run("optimize")


def _run(entry: str) -> None:
    """Run a command, which exits; an expected failure becomes one line and an exit code.

    ONNXPRESS_TRACEBACK=1 shows the traceback instead. Ctrl-C and a request to terminate unwind: temporary files go.
    """
    _stop_at_rest()
    _open_streams()
    try:
        code = _command(entry)
    except (KeyboardInterrupt, SystemExit) as stop:
        code = stop.code if isinstance(stop, SystemExit) else _INTERRUPTED  # typer turns the one into the other
        if code in (_INTERRUPTED, _TERMINATED):
            _tell(f"interrupted; {getattr(stop, 'kept', 'nothing was written')}")
    except OSError as error:
        if error is not _problem():
            raise
        code = 1
    sys.exit(_finish(code))


def _command(entry: str) -> Code:
    """Run a command; the exit code where it does not exit itself."""
    from . import app
    from .errors import OnnxpressError, command_line

    try:
        with command_line():
            getattr(app, entry)()
    except OnnxpressError as error:
        if os.environ.get("ONNXPRESS_TRACEBACK") == "1":
            raise
        _tell(f"error: {error}")
        return error.exit_code
    return None


class _Output(io.TextIOWrapper):
    """Standard output that remembers why it cannot be written."""

    problem: OSError | None = None
    done = ""
    """What is done even though it cannot be told."""

    def write(self, text: str) -> int:
        with self._noted():
            return super().write(text)

    def flush(self) -> None:
        with self._noted():
            super().flush()

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.problem = self.problem or error
            raise


def _open_streams() -> None:
    """Let nothing take the place of a standard stream that is closed: neither a file that is opened nor None."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 as long as the process
    stream = sys.stdout
    if type(stream) is io.TextIOWrapper:  # and not what a test captures it with
        encoding, errors, line_buffering = stream.encoding, stream.errors, stream.line_buffering
        sys.stdout = _Output(stream.detach(), encoding=encoding, errors=errors, line_buffering=line_buffering)


def _problem() -> OSError | None:
    """Why standard output cannot be written."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    return getattr(sys.stdout, "problem", None)


def _tell(line: str) -> None:
    """Print to standard error, where that is possible."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _finish(code: Code) -> Code:
    """The exit code when all output is written, or cannot be; nothing is left for the interpreter to complain about."""
    problem = _problem()
    if problem is not None:
        if not isinstance(problem, BrokenPipeError):  # else the reader has seen enough
            done = getattr(sys.stdout, "done", "")
            _tell(f"error: standard output cannot be written: {problem.strerror}{done and '; '}{done}")
        code = code or 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


def _stop_at_rest() -> None:
    """SIGINT and SIGTERM unwind what runs, though not within an import, which might swallow the exception or break."""
    asked = signal.SIGINT

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if number != signal.SIGALRM:
            asked = signal.Signals(number)
        if _is_importing(frame):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        elif asked == signal.SIGTERM:
            sys.exit(_TERMINATED)
        else:
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell's background job ignores the first
            signal.signal(number, stop)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
