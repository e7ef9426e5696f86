"""What was found, in files: for as long as it is needed, or in a folder of the user's, where a run goes on later.

The folder also says what run left it: what it holds is only taken up by a run of the same model, settings and data,
which then gives the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import OnnxpressError, UsageError

_RUN = "run.json"


class Files:
    """Arrays in files, by name, with some facts beside each.

    Args:
        folder: Of the user's; None for one that goes when nobody needs the files any more.
        run: What tells the run from others, as text.

    Raises:
        UsageError: The folder holds another run's files, or something else.
        OnnxpressError: It cannot be written to.
    """

    def __init__(self, folder: Path | None, run: str) -> None:
        if folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="onnxpress-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        else:
            self._folder = folder
            _claim(folder, run)

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return self._path(name).is_file()

    def keep(self, name: str, facts: object, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write a file.

        Raises:
            OnnxpressError: The disk is full, or another error of the operating system.
        """
        path = self._path(name)
        part = path.with_suffix(".part")
        everything: dict[str, Any] = {"facts": json.dumps(facts), **arrays}
        try:
            with open(part, "wb") as file:
                np.savez(file, **everything)
            os.replace(part, path)
        except OSError as error:
            raise OnnxpressError(f"{self._folder}: cannot keep what was found: {error.strerror}") from error

    def read(self, name: str, arrays: Iterable[str]) -> tuple[Any, dict[str, npt.NDArray[Any]]]:
        """The facts and some arrays of a file.

        Raises:
            OnnxpressError: It is damaged.
        """
        path = self._path(name)
        try:
            with np.load(path, allow_pickle=False) as parts:
                return json.loads(str(parts["facts"])), {each: parts[each] for each in arrays}
        except Exception as error:  # zipfile, zlib and NumPy raise many kinds for what is no archive of ours
            raise OnnxpressError(f"{path}: holds nothing that a run left; delete the folder and begin anew") from error

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.npz"


def _claim(folder: Path, run: str) -> None:
    """Say which run a folder belongs to."""
    path = folder / _RUN
    part = path.with_suffix(".part")
    try:
        if path.is_file():
            if path.read_text(encoding="utf-8") != run:
                raise UsageError(
                    f"{folder}: holds what a run with another model, other settings or other data left; give another "
                    "folder, or delete it"
                )
            return
        if folder.exists() and (not folder.is_dir() or any(each != part for each in folder.iterdir())):
            raise UsageError(f"{folder}: is no folder of an interrupted run, and not empty; give another")
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(run, encoding="utf-8")
        os.replace(part, path)
    except (OSError, UnicodeDecodeError) as error:
        raise OnnxpressError(f"{folder}: cannot be written to: {error}") from error
