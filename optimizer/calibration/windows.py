"""Windows of a text for a decoder: what its inputs hold when it reads some tokens with nothing before them.

A decoder takes the keys and values of the tokens before as inputs, its past. Here it is empty: of size 0 along the axis
that counts them. Where the sizes of a past are fixed it cannot be, and holds zeros, which the mask hides; so does the
state of a recurrent layer, which begins with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..errors import UsageError, option
from ..runtime.feeds import Feeds, is_float
from .inputs import Input, inputs_of
from .tokens import IDS, tokens_of

WINDOW = 512
"""Tokens of a window where nobody says."""
SEGMENTS = "token_type_ids"
FILLED = (IDS, "attention_mask", SEGMENTS, "position_ids")
MASK, _, _POSITIONS = FILLED[1:]
"""What says which tokens are padding, with 0."""
_COUNTING_AXIS = 2  # of a past [batch, heads, tokens, width] whose sizes are all fixed
_PAST_WORDS = ("past", "cache")


def reads_tokens(entry: Input) -> bool:
    """Whether an input is one of those that a line or a window of tokens fills, [batch, tokens]."""
    return entry.name in FILLED and entry.shape is not None and len(entry.shape) == 2 and entry.dtype.kind == "i"


def is_past(entry: Input) -> bool:
    """Whether an input holds what a decoder keeps of the tokens before: by its name, or by the one free size of four.

    The batch is another free size. A picture has two, or none.
    """
    if entry.shape is None or not is_float(entry.dtype) or len(entry.shape) < 3 or entry.name in FILLED:
        return False
    if any(word in entry.name.lower() for word in _PAST_WORDS):
        return True
    return len(entry.shape) == 4 and sum(not isinstance(size, int) for size in entry.shape[1:]) == 1


def tells_sentences_apart(inputs: Sequence[Input]) -> bool:
    """Whether a model without a past takes what encoders know one sentence of a pair from the other by."""
    return any(entry.name == SEGMENTS for entry in inputs) and not any(map(is_past, inputs))


def is_flag(entry: Input) -> bool:
    """Whether an input switches something on, such as the branch that reads a past."""
    return entry.dtype.kind == "b" and entry.shape in ((), (1,))


def predicts_tokens(model: ir.Model) -> bool:
    """Whether a model reads tokens and gives scores of the next one at each position.

    Its output has as many columns as the table of tokens has rows, or more if it is called logits. A model that tells
    sentences apart is an encoder, whatever it gives.
    """
    inputs = inputs_of(model)
    rows = next((entry.limit for entry in inputs if entry.name == IDS), None)
    if rows is None or tells_sentences_apart(inputs):
        return False
    shapes = [(value.name or "", value.shape) for value in model.graph.outputs if value.shape is not None]
    columns = [(name, shape[2]) for name, shape in shapes if len(shape) == 3 and isinstance(shape[2], int)]
    return any(size == rows or (size > rows and "logits" in name) for name, size in columns)


class Decoder:
    """What a decoder is given to read a window.

    Attributes:
        length: Tokens of a window.
    """

    def __init__(self, inputs: Sequence[Input], length: int | None, where: str) -> None:
        """See what the inputs need.

        Args:
            inputs: All that have to be given.
            length: Tokens of a window; the model's where that is fixed. None takes 512, or as many as it has positions.
            where: What an error begins with.

        Raises:
            UsageError: Tokens cannot fill an input, or the model has fewer positions.
        """
        for entry in inputs:
            if not (reads_tokens(entry) or is_past(entry) or is_flag(entry)):
                raise UsageError(cannot_fill(entry, where, "a past of float numbers and flags"))
        self._inputs = {entry.name: entry for entry in inputs}
        if IDS not in self._inputs:
            raise UsageError(f"{where}: the model takes no '{IDS}', so text cannot fill its inputs; give an .npz")
        self._pasts = [entry for entry in inputs if is_past(entry)]
        self.length = self._length(length, where)
        mask = self._size(MASK)
        self._before = self._fixed_past() if mask is None else mask - self.length
        if self._before < 0:
            raise UsageError(f"{where}: '{MASK}' is of {mask} tokens, fewer than the {self.length} of a window")

    def feeds(self, tokens: npt.NDArray[np.int64]) -> Feeds:
        """The inputs for a window, [length] tokens, as a batch of one."""
        rows = {
            IDS: tokens,
            MASK: np.repeat((0, 1), (self._before, len(tokens))),
            SEGMENTS: np.zeros_like(tokens),
            _POSITIONS: np.arange(len(tokens)),
        }
        return {
            name: rows[name][np.newaxis].astype(entry.dtype)
            if name in rows
            else np.zeros(self._shape(entry), entry.dtype)
            for name, entry in self._inputs.items()
        }

    def _size(self, name: str) -> int | None:
        """Tokens of an input, where they are fixed."""
        shape = self._inputs[name].shape if name in self._inputs else None
        size = shape[1] if shape else None
        return size if isinstance(size, int) else None

    def _length(self, asked: int | None, where: str) -> int:
        fixed = [size for name in (IDS, SEGMENTS, _POSITIONS) if (size := self._size(name)) is not None]
        if not fixed and (mask := self._size(MASK)) is not None:
            fixed = [mask - self._fixed_past()]
        if fixed:
            return min(fixed)
        positions = self._inputs[_POSITIONS].limit if _POSITIONS in self._inputs else None
        if positions is not None and asked is not None and asked > positions:
            raise UsageError(f"{where}: windows of {asked} tokens, and the model has {positions} positions")
        return asked or min(WINDOW, positions or WINDOW)

    def _fixed_past(self) -> int:
        """Tokens that a past holds because its sizes are fixed, as far as the mask counts them."""
        if any(not isinstance(size, int) for entry in self._pasts for size in (entry.shape or ())[1:]):
            return 0
        ids, mask = self._inputs[IDS].shape, self._inputs[MASK].shape if MASK in self._inputs else None
        if mask is None or (ids and isinstance(mask[1], str) and mask[1] == ids[1]):
            return 0
        counts = {entry.shape[_COUNTING_AXIS] for entry in self._pasts if entry.shape and len(entry.shape) == 4}
        return max((size for size in counts if isinstance(size, int)), default=0)

    def _shape(self, entry: Input) -> tuple[int, ...]:
        """Of a past or a flag: the batch is 1, what counts tokens is as long as the past that the mask hides."""
        name, shape = (self._inputs[IDS].shape or (None,))[0], entry.shape or ()
        batch = shape.index(name) if isinstance(name, str) and name in shape else 0
        return tuple(
            size if isinstance(size, int) else 1 if axis == batch else self._before for axis, size in enumerate(shape)
        )


def cannot_fill(entry: Input, where: str, others: str = "") -> str:
    """The message about an input that no text gives."""
    also = f", {others}" if others else ""
    return (
        f"{where}: text cannot fill input '{entry.name}' ({entry.describe()}), only {', '.join(FILLED)} of two "
        f"axes{also}; give an .npz"
    )


def begins(count: int, window: int, stride: int, where: str, setting: str) -> range:
    """Where the windows of a text begin, as many as are full.

    Args:
        count: Tokens of the text.
        window: Tokens of a window.
        stride: From one to the next.
        where: What an error begins with.
        setting: That has the length of a window.

    Raises:
        UsageError: There is not one.
    """
    if count < window:
        raise UsageError(
            f"{where}: has {count} tokens, too few for a window of {window}; give more text, or a smaller "
            f"{option(setting)}"
        )
    return range(0, count - window + 1, stride)


def window_samples(
    path: Path, inputs: Sequence[Input], tokenizer: str | Path, length: int | None, samples: int | None = None
) -> Callable[[], Iterable[Feeds]]:
    """What starts to go through the windows of a file, one behind the other; what is left at its end is left out.

    Args:
        path: Text in UTF-8.
        inputs: What the model takes.
        tokenizer: The tokenizer.json, or its folder.
        length: As of `Decoder`.
        samples: The most windows, which are taken evenly: the beginning of a text is about one thing alone.

    Raises:
        UsageError: Text cannot fill an input, is too short, or the tokenizer is another model's.
        OnnxpressError: The text or the tokenizer cannot be read.
    """
    decoder = Decoder(inputs, length, str(path))
    tokens = tokens_of(path, tokenizer, inputs)
    starts: Sequence[int] = begins(len(tokens), decoder.length, decoder.length, str(path), "length")
    if samples is not None and samples < len(starts):
        starts = [starts[index * len(starts) // samples] for index in range(samples)]
    return lambda: (decoder.feeds(tokens[start : start + decoder.length]) for start in starts)
