"""How many threads NumPy's products take.

OpenBLAS has its threads wait for each other by spinning. For thousands of products too small to share that is slow
where the machine is busy with something else, too: ten times was measured. So such work takes one thread a product, and
the work itself is shared.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator

_NAMES = ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_", "scipy_openblas_{}_num_threads",
          "openblas_{}_num_threads")  # fmt: skip


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Products of NumPy on one thread each, where it computes them by OpenBLAS; elsewhere nothing changes."""
    get, change = _controls()
    before = get()
    change(1)
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
