"""Text as inputs of a transformer, through a tokenizer.json: a line a sample for encoders, windows for decoders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from ..runtime.feeds import Feeds
from .files import unreadable
from .inputs import Input
from .tokens import check_vocabulary, open_tokenizer
from .windows import cannot_fill, is_past, reads_tokens, window_samples

_LINE = 128
"""Tokens of a line where nobody says."""
_PAD_TOKENS = ("[PAD]", "<pad>")


def text_samples(
    path: Path, inputs: Sequence[Input], tokenizer: str | Path, length: int | None, samples: int | None = None,
    *, decoder: bool = False,
) -> Callable[[], Iterable[Feeds]]:  # fmt: skip
    """What starts to go through a text: its windows, see `window_samples`, or its lines that are not blank.

    Args:
        path: Text in UTF-8.
        inputs: What the model takes: some of input_ids, attention_mask, token_type_ids and position_ids, and of a
            decoder its past.
        tokenizer: The tokenizer.json, or its folder.
        length: Tokens of each sample; the model's where that is fixed. None takes 128 for lines and 512 for windows.
        samples: The most windows; of lines all are gone through.
        decoder: Whether the model predicts tokens; a past among the inputs says so, too.

    Raises:
        UsageError: The model takes something else, `path` is a folder or too short, or the tokenizer is another
            model's.
        OnnxpressError: The tokenizer cannot be read, or the package is not installed.
    """
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; give a text file with a sample a line")
    if decoder or any(map(is_past, inputs)):
        return window_samples(path, inputs, tokenizer, length, samples)
    for entry in inputs:
        if not reads_tokens(entry):
            raise UsageError(cannot_fill(entry, str(path)))
    fixed = {entry.shape[1] for entry in inputs if entry.shape is not None and isinstance(entry.shape[1], int)}
    encoder = _padding(tokenizer, min(fixed) if fixed else length or _LINE)
    return lambda: _lines(path, inputs, encoder, tokenizer)


def _padding(path: str | Path, length: int) -> Any:
    """A tokenizer whose texts are all of this length."""
    encoder = open_tokenizer(path)
    padding = encoder.padding or {}
    known = [token for token in _PAD_TOKENS if encoder.token_to_id(token) is not None]
    token = padding.get("pad_token", known[0] if known else _PAD_TOKENS[0])
    number = padding.get("pad_id", encoder.token_to_id(token) or 0)
    encoder.enable_padding(length=length, pad_id=number, pad_token=token)
    encoder.enable_truncation(length)
    return encoder


def _lines(path: Path, inputs: Sequence[Input], encoder: Any, tokenizer: str | Path) -> Iterator[Feeds]:
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                if text := line.strip():
                    encoding = encoder.encode(text)
                    check_vocabulary(np.array(encoding.ids), inputs, tokenizer)
                    yield _feeds(encoding, inputs)
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error


def _feeds(encoding: Any, inputs: Sequence[Input]) -> Feeds:
    rows = {
        "input_ids": encoding.ids,
        "attention_mask": encoding.attention_mask,
        "token_type_ids": encoding.type_ids,
        "position_ids": range(len(encoding.ids)),
    }
    return {entry.name: np.array([rows[entry.name]], entry.dtype) for entry in inputs}
