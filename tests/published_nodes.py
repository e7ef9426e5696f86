"""The single nodes that ONNX tests its operators by, computed once for all processes that run tests.

To make them takes seconds, most of them for the outputs of pools: the first process keeps them in a file, beside what
else pytest keeps.
"""

from __future__ import annotations

import fcntl
import functools
import pickle
import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx.backend.test.case.test_case import TestCase

_FOLDER = Path(__file__).parent.parent / ".pytest_cache"


@functools.cache
def published_nodes() -> list[TestCase]:
    """In the order of ONNX, with inputs and outputs; of each process its own."""
    _FOLDER.mkdir(exist_ok=True)
    # Types that NumPy lacks come from other versions of it, too.
    file = _FOLDER / f"nodes-of-onnx-{onnx.__version__}-numpy-{np.__version__}.pickle"
    with file.open("a+b") as kept:
        fcntl.flock(kept, fcntl.LOCK_EX)  # who comes second waits for the first
        kept.seek(0)
        data = kept.read()
        try:
            return pickle.loads(data)
        except (EOFError, pickle.UnpicklingError):  # new, or interrupted
            made = _made()
        kept.truncate(0)
        pickle.dump(made, kept, pickle.HIGHEST_PROTOCOL)
    return made


def _made() -> list[TestCase]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the cases, which divide by zero
        return collect_testcases(None)
