"""Shared by all tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `import graphs`


@pytest.fixture(scope="module")
def child():
    """Runs models in a process of its own."""
    from child import Child

    made = Child()
    yield made
    made.close()
