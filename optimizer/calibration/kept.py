"""Tensors that wait until they are read, in memory or in files."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Kept:
    """Tensors by batch and name, in memory up to a bound, then in files.

    Args:
        memory: The bound, in bytes.

    Attributes:
        types: Of all that were ever kept, as NumPy has them.
    """

    def __init__(self, memory: int) -> None:
        self._memory, self._used = memory, 0
        self._held: list[dict[str, Array | Path]] = []
        self.types: dict[str, np.dtype[Any]] = {}
        self._folder: Path | None = None
        self._files = 0

    @property
    def batches(self) -> int:
        """How many there are."""
        return len(self._held)

    def put(self, batch: int, name: str, value: Array) -> None:
        """Keep a tensor."""
        while len(self._held) <= batch:
            self._held.append({})
        self.types[name] = value.dtype
        if self._used + value.nbytes > self._memory and value.dtype != object:
            self._held[batch][name] = self._write(value)
            return
        self._used += value.nbytes
        self._held[batch][name] = value

    def get(self, batch: int, name: str) -> Array:
        """A tensor that was kept."""
        value = self._held[batch][name]
        return np.load(value) if isinstance(value, Path) else value

    def keep(self, names: set[str]) -> None:
        """Forget all others."""
        for values in self._held:
            for name in values.keys() - names:
                value = values.pop(name)
                if isinstance(value, Path):
                    value.unlink()
                else:
                    self._used -= value.nbytes

    def close(self) -> None:
        """Forget all, and delete the files."""
        self._held = []
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, value: Array) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="onnxpress-"))
        self._files += 1
        path = self._folder / f"{self._files}.npy"
        np.save(path, value)
        return path
