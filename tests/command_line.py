"""The command line of onnxpress within the process of a test."""

from __future__ import annotations

import sys
from collections.abc import Callable

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
