"""What the machine does at best, against which kernels are measured."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from onnxpress.custom_ops import _kernels

_SECONDS = 0.5
_BYTES = 256 << 20  # beyond any cache


class Probe:
    """All threads at once.

    Attributes:
        bytes: That `read` reads.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._memories = [np.ones(_BYTES // threads, np.uint8) for _ in range(threads)]
        self.bytes = sum(memory.nbytes for memory in self._memories)

    def dot_rate(self) -> float:
        """int8 operations a second."""
        return 2 * sum(self._pool.map(lambda _: _kernels.dot_rate(_SECONDS), self._memories))

    def read(self) -> None:
        """Read `bytes` from memory."""
        list(self._pool.map(_kernels.read, self._memories))
