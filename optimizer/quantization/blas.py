"""Products of NumPy, and the threads that they take.

OpenBLAS has its threads wait for each other by spinning. For thousands of products too small to share that is slow
where the machine is busy with something else, too: ten times was measured. What is more, it sums in another order on
another number of threads: of a Cholesky factor, and of some products, the last bits differ. So work takes one thread a
product, and is itself shared, in pieces that do not depend on how many threads there are.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from .threads import threads

_NAMES = ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_", "scipy_openblas_{}_num_threads",
          "openblas_{}_num_threads")  # fmt: skip
_PANEL = 512
"""Columns of a product that one thread computes."""


@contextlib.contextmanager
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads that share work, each product of which takes one of them."""
    with one_thread_each(), ThreadPoolExecutor(threads()) as executor:
        yield executor


def product(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The product [..., m, k] @ [..., k, n], shared by all threads; its bits do not depend on their number."""
    columns = range(0, right.shape[-1], _PANEL)
    if len(columns) < 2:
        with one_thread_each():
            whole: npt.NDArray[Any] = left @ right
            return whole
    found = np.empty((*left.shape[:-1], right.shape[-1]), np.result_type(left, right))

    def fill(begin: int) -> None:
        part = np.s_[..., begin : begin + _PANEL]
        np.matmul(left, right[part], out=found[part])

    with pool() as executor:
        list(executor.map(fill, columns))
    return found


def one_thread_each() -> contextlib.AbstractContextManager[None]:
    """Products of NumPy on one thread each."""
    return products_on(1)


@contextlib.contextmanager
def products_on(count: int) -> Iterator[None]:
    """Products of NumPy on so many threads each, where it computes them by OpenBLAS; elsewhere nothing changes."""
    get, change = _controls()
    before = get()
    change(count)
    try:
        yield
    finally:
        change(before)


@functools.cache
def _controls() -> tuple[Callable[[], int], Callable[[int], object]]:
    """Of the OpenBLAS in this process."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            paths = dict.fromkeys(line.split()[-1] for line in file if "openblas" in line)
    except OSError:
        paths = {}
    for path in paths:
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(path)
            for name in _NAMES:
                with contextlib.suppress(AttributeError):
                    return getattr(library, name.format("get")), getattr(library, name.format("set"))
    return lambda: 1, lambda _count: None


def blas_threads() -> int:
    """Threads that a product of NumPy takes; 1 where that is not known."""
    return _controls()[0]()
