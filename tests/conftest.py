"""Shared by all tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `import graphs`
# Before NumPy is imported. The threads of OpenBLAS spin while they wait for each other: where other tests have the
# cores, a factorization of a matrix takes many times the processor time that it takes on one thread.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--note-runs", type=Path, metavar="FILE", help="write to FILE which tests run models")
    parser.addoption("--noted-runs", type=Path, metavar="FILE", help="of each test that FILE holds, run some cases")


def pytest_configure(config: pytest.Config) -> None:
    from sessions import spin_no_threads

    spin_no_threads()
    if path := config.getoption("--note-runs"):
        from runs import NoteRuns

        config.pluginmanager.register(NoteRuns(path))
    if path := config.getoption("--noted-runs"):
        from runs import KeepNoted

        config.pluginmanager.register(KeepNoted(path))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # The longest first, so that none is left alone at the end; one worker gets them all, with what they share.
    items.sort(key=lambda item: item.get_closest_marker("real") is None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests of all schemes leave out those that this ONNX Runtime does not run."""
    from sessions import unrunnable

    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    if schemes := unrunnable(parameters):
        pytest.skip(f"this ONNX Runtime has no products of FLOAT8: {', '.join(schemes)}")


@pytest.fixture(autouse=True)
def _draws_of_a_test(request: pytest.FixtureRequest, _first_draw: dict[str, object] | None) -> None:
    """Each test draws the same numbers, whichever ran before it in this process."""
    if _first_draw is not None:
        request.module.RNG.bit_generator.state = _first_draw


@pytest.fixture(scope="module")
def _first_draw(request: pytest.FixtureRequest) -> dict[str, object] | None:
    generator = getattr(request.module, "RNG", None)
    return None if generator is None else generator.bit_generator.state


@pytest.fixture(scope="module")
def child():
    """Runs models in a process of its own."""
    from child import Child

    made = Child()
    yield made
    made.close()


@pytest.fixture(scope="session")
def forks():
    """Runs code in processes whose imports are made."""
    from forked import Forks

    made = Forks()
    yield made
    made.close()


@pytest.fixture
def probe_within_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `bench` asks a new process for each model it measures within this one, as starting them takes seconds."""
    import contextlib
    import io
    import json
    import subprocess
    import traceback
    import types

    from onnxpress.optimizer.analysis import bench, load_probe

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        *_, path, options, feeds = command
        out, errors = io.StringIO(), ""
        try:
            with contextlib.redirect_stdout(out):
                load_probe.main(path, json.loads(options), feeds)
        except Exception:
            errors = traceback.format_exc()
        return subprocess.CompletedProcess(command, int(bool(errors)), out.getvalue(), errors)

    monkeypatch.setattr(bench, "subprocess", types.SimpleNamespace(run=run))
