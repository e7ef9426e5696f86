"""Where an output may go; asked before anything is read, so it needs nothing that is slow to import."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import UsageError, option


def check_other(target: str | Path, file: str | Path, what: str = "is the model itself") -> None:
    """Refuse an output that is a file of the model which is read.

    Args:
        target: The output.
        file: A file of the model, or what is none.
        what: What the file is, for the error.

    Raises:
        UsageError: It names the output.
    """
    if Path(target).exists() and Path(file).exists() and Path(target).samefile(file):
        raise UsageError(f"{target}: {what}, which would be lost; name another file with {option('output')}")


def check_target(path: str | Path, read: Iterable[object] = ()) -> Path:
    """The output path, when a file can be written there.

    Args:
        path: The output.
        read: Paths of what is read; others than paths are passed over.

    Raises:
        UsageError: It is a folder or a device, its folder does not exist or cannot be written to, or it is read.
    """
    path = Path(path)
    for other in read:
        if isinstance(other, str | Path) and path.is_file() and Path(other).is_file() and path.samefile(other):
            raise UsageError(f"{path}: is read itself, and would be lost; name another output")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name the output file")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: is no regular file; name another output")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{path}: the folder {path.parent} is not writable")
    return path
