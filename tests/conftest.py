"""Shared by all tests."""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `import graphs`


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--note-runs", type=Path, metavar="FILE", help="write to FILE which tests run models")
    parser.addoption("--noted-runs", type=Path, metavar="FILE", help="run only the tests that FILE holds")


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("--note-runs"):
        from runs import NoteRuns

        config.pluginmanager.register(NoteRuns(path))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if path := config.getoption("--noted-runs"):
        from runs import keep_noted

        keep_noted(path, config, items)


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


_UNKNOWN_BEFORE = (
    "tensor(float8",
    "Could not find an implementation for",
    "is under development",
    "model IR version",
    "Only 4b and 8b",
)
"""What ONNX Runtime before 1.32 says of products of FLOAT8, and of opsets that it has no kernels of."""


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Tests of all schemes and opsets come across what older versions of ONNX Runtime do not run."""
    from sessions import RUNS_FLOAT8_PRODUCTS

    try:
        return (yield)
    except Exception as error:
        if RUNS_FLOAT8_PRODUCTS or not any(words in str(error) for words in _UNKNOWN_BEFORE):
            raise
        pytest.skip(f"this ONNX Runtime does not run it: {str(error)[-200:]}")
