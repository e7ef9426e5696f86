"""The command line of onnxpress within the process of a test: to start one for each takes seconds."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from onnxpress.optimizer import cli

Run = Callable[..., tuple[int | str | None, str, str]]


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A function of the arguments of `onnxpress` that returns its exit code, output and errors."""

    def call(*arguments: str) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr(sys, "argv", ["onnxpress", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return call


def call(
    *arguments: object, entry: str = "main", cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What a process of this entry point would end with, in a folder and with more in its environment.

    All that is written to the standard streams is in the result, also by libraries in C++, and tracebacks.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with pytest.MonkeyPatch.context() as patch, _as_a_process_has_it(out.fileno(), err.fileno()):
            patch.setattr(sys, "argv", ["onnxpress", *map(str, arguments)])
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            if cwd is not None:
                patch.chdir(cwd)
            code: object = 0
            try:
                getattr(cli, entry)()
            except SystemExit as stop:
                code = stop.code
            except Exception:
                traceback.print_exc()
                code = 1
        told = []
        for file in (out, err):
            file.seek(0)
            told.append(file.read().decode())
    return subprocess.CompletedProcess(list(arguments), code or 0, *told)


@contextlib.contextmanager
def _as_a_process_has_it(out: int, err: int) -> Iterator[None]:
    """Standard output and errors go to these descriptors; handlers of signals and warnings come back afterwards."""
    streams, handlers = (sys.stdout, sys.stderr), {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    saved = os.dup(1), os.dup(2)
    for stream in streams:
        stream.flush()
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.simplefilter("ignore", ResourceWarning)  # as a process does: what other tests left may go now
            yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = streams
        for number, descriptor in enumerate(saved, 1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        for number, handler in handlers.items():
            signal.signal(number, handler)
