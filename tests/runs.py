"""Which tests run a model in ONNX Runtime: the others need not be repeated on another version of it.

A run of all tests notes them in a file, by which another run chooses: nobody has to mark them. What differs on another
version is what its operators, its optimizations and its interfaces do, not the arithmetic of every width and size: of
the cases of a parametrized test it runs some.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path

import onnxruntime as ort
import pytest

_CASES = 4  # of a parametrized test
_STARTS_A_PROCESS = ("subprocess.Popen", "os.posix_spawn", "os.fork")


class NoteRuns:
    """Appends the names of tests to a file: those that open or run a session, start a process, or are skipped.

    What a process does is not looked at; who is skipped here may run on another version.
    """

    def __init__(self, path: Path):
        self._path = path
        self._seen = False
        for name in ("__init__", "run", "run_with_iobinding", "run_with_ort_values"):
            setattr(ort.InferenceSession, name, self._noticed(getattr(ort.InferenceSession, name)))
        sys.addaudithook(self._hear)

    def _noticed(self, function):
        def call(*args, **kwargs):
            self._seen = True
            return function(*args, **kwargs)

        return call

    def _hear(self, event: str, _args: object) -> None:
        self._seen = self._seen or event in _STARTS_A_PROCESS

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._seen = False
        result = yield
        if self._seen:
            with self._path.open("a") as file:
                file.write(item.nodeid + "\n")
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seen = self._seen or report.skipped


def keep_noted(path: Path, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave in `items` the tests of the file, of one with many cases as many as `_CASES`, spread over all."""
    noted = set(path.read_text().splitlines())
    cases: dict[str, list[str]] = {}
    for item in items:
        if item.nodeid in noted:
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item.nodeid)
    kept = {some[i * len(some) // _CASES] for some in cases.values() for i in range(_CASES)}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in kept])
    items[:] = [item for item in items if item.nodeid in kept]
