"""Text as numbers of tokens, through a tokenizer.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import OnnxpressError, UsageError
from .files import require_tokenizers, tokenizer_file, unreadable
from .inputs import Input

IDS = "input_ids"


def open_tokenizer(path: str | Path) -> Any:
    """The `tokenizers.Tokenizer` of a file, or of a folder that has one; it neither pads nor cuts.

    Raises:
        OnnxpressError: The file cannot be read, or the package is not installed.
    """
    require_tokenizers()
    from tokenizers import Tokenizer

    file = tokenizer_file(path)
    try:
        found = Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises Exception itself
        raise OnnxpressError(f"{file}: not a tokenizer.json: {error}") from error
    return found


def read_text(path: Path) -> str:
    """All of a text in UTF-8.

    Raises:
        UsageError: It is a folder.
        OnnxpressError: It cannot be read, or is no such text.
    """
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; give a text file")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error


def tokens_of(path: Path, tokenizer: str | Path, inputs: Sequence[Input]) -> npt.NDArray[np.int64]:
    """All tokens of a text, special ones as the tokenizer sets them, [tokens].

    Args:
        path: Text in UTF-8.
        tokenizer: As `open_tokenizer` takes it.
        inputs: Of the model that is to read them.

    Raises:
        UsageError: The text is a folder, or has tokens that the model does not know.
        OnnxpressError: The text or the tokenizer cannot be read.
    """
    text, encoder = read_text(path), open_tokenizer(tokenizer)
    encoder.no_padding()
    encoder.no_truncation()
    ids = np.array(encoder.encode(text).ids, np.int64)
    check_vocabulary(ids, inputs, tokenizer)
    return ids


def check_vocabulary(ids: npt.NDArray[np.int64], inputs: Sequence[Input], tokenizer: str | Path) -> None:
    """Refuse numbers of tokens that are no rows of the model's table.

    Raises:
        UsageError: There is one.
    """
    rows = next((entry.limit for entry in inputs if entry.name == IDS), None)
    if rows is not None and ids.size and (most := int(ids.max())) >= rows:
        raise UsageError(
            f"{tokenizer}: makes token {most} of the text, and the model has a table of {rows} for '{IDS}': it is the "
            "tokenizer of another model"
        )
