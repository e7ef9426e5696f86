"""The other settings, in groups as in `groups`: what becomes of the graph and of blocks of weights."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..errors import SettingError
from .lengths import LENGTHS, written_lengths
from .setting import between, setting

_MOST_ROWS = 1 << 16
_SPARSITY = "a number from 0 up to but not 1, such as 0.8"
_ROWS = f"a whole number from 1 to {_MOST_ROWS}"


def _sparsity(key: str, value: Any) -> float:
    if not 0 <= value < 1:
        raise SettingError(key, value, f", must be {_SPARSITY}")
    return float(value)


def _block(_key: str, value: Any) -> str:
    from ..sparsity.blocks import Block  # NumPy is slow to import for who only prints help

    return str(Block.parse(value))


def _rows(key: str, value: Any) -> int:
    if not 1 <= value <= _MOST_ROWS:
        raise SettingError(key, value, f", must be {_ROWS}")
    return int(value)


@dataclasses.dataclass(frozen=True)
class Fusion:
    """What is fused."""

    fuse: bool = setting(
        True,
        "Fuse attention, and in decoders with a past and beside weights that are rounded alone also norms and products "
        "of the same tensor, into operators of ONNX Runtime.",
        option="--fuse/--no-fuse",
    )


@dataclasses.dataclass(frozen=True)
class Logits:
    """What a language model says."""

    last_logits: bool = setting(
        False,
        "Compute logits of the last token alone: a prompt takes less time, and the output is one token long.",
        option="--last-logits/--all-logits",
    )


@dataclasses.dataclass(frozen=True)
class WholeLayers:
    """Layers of encoders as one operator."""

    fuse_layers: bool = setting(
        False,
        "Write each layer of an encoder as one operator of ours, which leaves out padding; where our library is "
        "missing it runs as standard operators, slower than without.",
        option="--fuse-layers/--no-fuse-layers",
    )


@dataclasses.dataclass(frozen=True)
class TokenLengths:
    """Tokens that go on from layer to layer of an encoder."""

    lengths: str | None = setting(
        None,
        "How many tokens each layer of an encoder but the last hands on: those that most attention is paid to, as a "
        "share of a text's tokens or as a number, such as 0.9,0.75,64; or search, for the cheapest that lose no more "
        "of a metric than max_drop or max_kl; or input, which makes the lengths an input of the model, by default "
        "those of the budget or all. In outputs of tokens what left is put back.",
        parse=written_lengths,
        expected=LENGTHS,
    )
    length_budget: float | None = setting(
        None,
        "Share of the tokens that all layers together are to read, such as 0.5, in place of lengths: all hand on the "
        "same share.",
        parse=between(0, 1),
        is_share=True,
    )


@dataclasses.dataclass(frozen=True)
class Sparse:
    """Blocks of weights that are left out."""

    sparsity: float | None = setting(
        None,
        "Share of the blocks to remove, from 0 up to but not 1; by default 0.8, or 0.5 by magnitude, which no model "
        "bears more of in one shot.",
        parse=_sparsity,
        expected=_SPARSITY,
        per_node=True,
    )
    block: str | None = setting(
        None,
        "Inputs x outputs of a block, such as 4x4, 4x1 or 1x16; by default 4x4, 4x1 below a sparsity of 0.1, or as "
        "found in weights that are sparse already.",
        parse=_block,
        expected='a string of inputs x outputs, such as "4x4"',
    )
    dtype: str = setting("int8", "Of the weights that are kept: int8 or float32.", choices=("int8", "float32"))
    criterion: str | None = setting(
        None,
        "Which blocks go: magnitude, wanda, or obs, which also moves what is kept; by default obs where there is data, "
        "else magnitude.",
        choices=("magnitude", "wanda", "obs"),
    )
    allocation: str = setting(
        "sensitivity",
        "sensitivity removes more blocks where layers lose less by it, relative to their outputs; uniform the same "
        "share everywhere.",
        choices=("uniform", "sensitivity"),
    )
    activations: str = setting(
        "dynamic",
        "Codes of int8: dynamic, with a scale per row, or static, with one from a calibration.",
        choices=("dynamic", "static"),
    )
    prune: bool = setting(
        True,
        "Choose blocks; else only zeros that are there already are left out, and nothing changes.",
        option="--prune/--no-prune",
    )
    mask: str | None = setting(
        None, ".npz file of what to keep, by weight, as export-mask writes it, in place of choosing blocks."
    )
    expected_rows: int | None = setting(
        None,
        "Rows of activations. Layers that this machine then runs faster dense stay whole, as dynamic int8 where that "
        "is the fastest.",
        parse=_rows,
        expected=_ROWS,
    )
