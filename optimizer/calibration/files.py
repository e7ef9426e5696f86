"""What files hold data, by their names; needed before anything is read, so it imports nothing that is slow."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..errors import OnnxpressError, lacking
from ..user_functions import is_reference

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
"""Ends of names of files that hold pictures."""
ARRAYS = frozenset({".npz", ".npy"})
"""And of those that hold arrays."""
TOKENIZER = "tokenizer.json"
"""Name of a tokenizer's file."""


def may_be_text(path: Path) -> bool:
    """By its name, and other files that are none of arrays or pictures, such as source code."""
    return path.suffix == ".txt" or (path.is_file() and path.suffix.lower() not in IMAGES | ARRAYS)


def require_tokenizers() -> None:
    """Ask for the package tokenizers, without importing it.

    Raises:
        OnnxpressError: It is not installed.
    """
    if importlib.util.find_spec("tokenizers") is None:
        raise OnnxpressError(lacking("text", "the package tokenizers", "models"))


def check_source(source: object) -> None:
    """Refuse the name of data that nobody finds; of anything else than a name it says nothing.

    Raises:
        OnnxpressError: It is neither a file, a folder nor "module:function".
    """
    if isinstance(source, str | Path) and not Path(source).exists() and not is_reference(str(source)):
        raise OnnxpressError(f"{source}: no such file or folder, and no module:function")


def tokenizer_file(path: str | Path) -> Path:
    """The tokenizer.json of a name, which is its own or that of its folder.

    Raises:
        OnnxpressError: There is none.
    """
    file = Path(path) / TOKENIZER if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise OnnxpressError(f"{file}: no such file; give the model's tokenizer.json")
    return file


def unreadable(path: str | Path, error: OSError | UnicodeDecodeError) -> OnnxpressError:
    """The error for a text that could not be read."""
    if isinstance(error, UnicodeDecodeError):
        return OnnxpressError(f"{path}: is no text in UTF-8: {error.reason}")
    return OnnxpressError(f"{path}: cannot read: {error.strerror}")
