"""Lines of text as inputs of an encoder, through a tokenizer.json."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OnnxpressError, UsageError
from ..runtime.feeds import Feeds
from .inputs import Input

_FILLED = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_PAD_TOKENS = ("[PAD]", "<pad>")


def line_samples(
    path: Path, inputs: Sequence[Input], tokenizer: str | Path, length: int
) -> Callable[[], Iterable[Feeds]]:
    """What starts to go through the lines of a file that are not blank.

    Args:
        path: Text in UTF-8.
        inputs: What the model takes: some of input_ids, attention_mask, token_type_ids and position_ids.
        tokenizer: The tokenizer.json.
        length: Tokens of each sample; the model's where that is fixed.

    Raises:
        UsageError: The model takes something else, or `path` is a folder.
        OnnxpressError: The tokenizer cannot be read, or the package is not installed.
    """
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; give a text file with a sample a line")
    for entry in inputs:
        if entry.name not in _FILLED or entry.shape is None or len(entry.shape) != 2 or entry.dtype.kind != "i":
            raise UsageError(
                f"{path}: text cannot fill input '{entry.name}' ({entry.describe()}), only {', '.join(_FILLED)} of "
                "two axes; give an .npz"
            )
    fixed = {entry.shape[1] for entry in inputs if entry.shape is not None and isinstance(entry.shape[1], int)}
    encoder = _open(tokenizer, min(fixed) if fixed else length)
    return lambda: _samples(path, inputs, encoder)


def _open(path: str | Path, length: int) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise OnnxpressError('text needs the package tokenizers: pip install "onnxpress[models]"') from error
    if not Path(path).is_file():
        raise OnnxpressError(f"{path}: no such file; give the model's tokenizer.json")
    try:
        encoder = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises Exception itself
        raise OnnxpressError(f"{path}: not a tokenizer.json: {error}") from error
    padding = encoder.padding or {}
    known = [token for token in _PAD_TOKENS if encoder.token_to_id(token) is not None]
    token = padding.get("pad_token", known[0] if known else _PAD_TOKENS[0])
    number = padding.get("pad_id", encoder.token_to_id(token) or 0)
    encoder.enable_padding(length=length, pad_id=number, pad_token=token)
    encoder.enable_truncation(length)
    return encoder


def _samples(path: Path, inputs: Sequence[Input], encoder: Any) -> Iterator[Feeds]:
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                if text := line.strip():
                    yield _feeds(encoder.encode(text), inputs)
    except OSError as error:
        raise OnnxpressError(f"{path}: cannot read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise OnnxpressError(f"{path}: is no text in UTF-8: {error.reason}") from error


def _feeds(encoding: Any, inputs: Sequence[Input]) -> Feeds:
    rows = {
        "input_ids": encoding.ids,
        "attention_mask": encoding.attention_mask,
        "token_type_ids": encoding.type_ids,
        "position_ids": range(len(encoding.ids)),
    }
    return {entry.name: np.array([rows[entry.name]], entry.dtype) for entry in inputs}
