"""Which tests run a model in ONNX Runtime: the others need not be repeated on another version of it.

A run of all tests notes them in a file, by which another run chooses: nobody has to mark them. What differs on another
version is what its operators, its optimizations and its interfaces do, not the arithmetic of every width and size: of
the cases of a parametrized test it runs some. Nor is it what lies above conversions and compares many: searches,
studies, checkpoints, and the command line.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path

import onnxruntime as ort
import pytest

_CASES = 4  # of a parametrized test
_ABOVE_CONVERSIONS = (
    "ep/test_context_damage.py",  # what our own code says of the file
    "optimizer/analysis/test_*stud*.py", "optimizer/analysis/test_openvino.py", "optimizer/analysis/test_page.py",
    "optimizer/analysis/test_steps.py", "optimizer/commands/test_cli.py", "optimizer/commands/test_quick_refusals.py",
    "optimizer/commands/test_streams.py", "optimizer/commands/test_text_tasks.py", "optimizer/evaluation/test_*.py",
    "optimizer/families/calibrated/test_metrics.py", "optimizer/families/calibrated/test_trials.py",
    "optimizer/families/sparse/test_criteria.py", "optimizer/families/test_*checkpoints.py",
    "optimizer/families/test_automatic.py", "optimizer/families/test_compensation.py",
    "optimizer/families/test_length_search.py", "optimizer/families/test_mixed.py",
    "optimizer/families/test_rotating.py", "optimizer/families/test_transforming.py",
    "optimizer/families/test_weight_data.py", "optimizer/model_io/test_names.py",
)  # fmt: skip
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


class KeepNoted:
    """Runs the tests of the file, of one with many cases as many as `_CASES`, spread over all."""

    def __init__(self, path: Path):
        here = Path(__file__).parent
        above = {file.relative_to(here.parent).as_posix() for each in _ABOVE_CONVERSIONS for file in here.glob(each)}
        self._noted = {name for name in path.read_text().splitlines() if name.partition("::")[0] not in above}
        self._files = {here.parent / name.partition("::")[0] for name in self._noted}

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        """A file that holds none is not imported."""
        return True if collection_path.suffix == ".py" and collection_path not in self._files else None

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        cases: dict[str, list[str]] = {}
        for item in items:
            if item.nodeid in self._noted:
                cases.setdefault(item.nodeid.partition("[")[0], []).append(item.nodeid)
        kept = {some[i * len(some) // _CASES] for some in cases.values() for i in range(_CASES)}
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in kept])
        items[:] = [item for item in items if item.nodeid in kept]
