"""What the machine does at best, against which kernels are measured."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from onnxpress.custom_ops import _kernels

_SECONDS = 0.5
_BYTES = 256 << 20  # beyond any cache


class Probe:
    """All threads at once.

    Attributes:
        bytes: That `read` reads.
    """

    def __init__(self, threads: int) -> None:
        self._threads, self._pool = threads, ThreadPoolExecutor(threads)
        self.bytes = _BYTES // threads * threads

    @functools.cached_property
    def _memories(self) -> list[npt.NDArray[np.uint8]]:
        return [np.ones(_BYTES // self._threads, np.uint8) for _ in range(self._threads)]

    def dot_rate(self) -> float:
        """int8 operations a second."""
        return 2 * sum(self._pool.map(lambda _: _kernels.dot_rate(_SECONDS), range(self._threads)))

    def read(self) -> None:
        """Read `bytes` from memory."""
        list(self._pool.map(_kernels.read, self._memories))
