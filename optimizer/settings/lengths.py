"""How many tokens go on after each layer of an encoder, as a user writes it: "0.9,0.75,64" or "90%,75%,64"."""

from __future__ import annotations

import itertools
import re

from ..errors import SettingError

INPUT = "input"
"""In place of lengths: they are an input of the model."""
SEARCH = "search"
"""In place of lengths: the cheapest within a bound on a metric."""
LENGTHS = (
    'a length for each layer but the last, such as "0.9,0.75,64": a share of the tokens of a text up to 1, or a whole '
    f'number of tokens from 2, none more than the one before; or "{INPUT}", or "{SEARCH}"'
)
_NUMBER = re.compile(r"([0-9]{1,9}(?:\.[0-9]{0,9})?)(%?)")
PARTS = 10_000
"""Shares are counted in: products with numbers of tokens are then of integers, and the same on every machine."""

LEAST = 8
"""Tokens that stay of a share: with fewer there is nothing to win."""


def lengths_of(text: str, key: str = "lengths") -> tuple[float, ...]:
    """What a text says, layer by layer: shares up to 1, or whole numbers from 2.

    Raises:
        SettingError: It says no lengths, or one of them is more than the one before.
    """
    lengths = tuple(_length(part.strip(), text, key) for part in text.split(","))
    for layer, (before, length) in enumerate(itertools.pairwise(lengths), 2):
        if (before > 1) == (length > 1) and length > before:
            problem = f": layer {layer} hands on {length:g}, layer {layer - 1} {before:g}; what is gone stays away"
            raise SettingError(key, text, problem)
    return lengths


def written_lengths(key: str, text: str) -> str:
    """The text, where it says lengths, "input" or "search".

    Raises:
        SettingError: It does not.
    """
    if text not in (INPUT, SEARCH):
        lengths_of(text, key)
    return text


def parts_of(length: float) -> tuple[int, int]:
    """A length as ten-thousandths of the tokens, and a number of tokens that it is at least."""
    return (round(length * PARTS), LEAST) if length <= 1 else (0, int(length))


def _length(word: str, text: str, key: str) -> float:
    found = _NUMBER.fullmatch(word)
    if found is None:
        raise SettingError(key, text, f", must be {LENGTHS}")
    number = float(found[1]) / (100 if found[2] else 1)
    if number < 1 / PARTS:
        raise SettingError(key, text, f': "{word}" leaves nothing, but the first token stays; must be {LENGTHS}')
    if number > 1 and (found[2] or not number.is_integer()):
        raise SettingError(key, text, f': "{word}" is neither a share nor a whole number; must be {LENGTHS}')
    return number
