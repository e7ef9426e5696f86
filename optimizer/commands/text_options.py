"""Options of a text that models are judged on."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import UsageError
from ..evaluation.texts import Text

PANEL = "A text, for perplexity, kl and embeddings"

TextFile = Annotated[
    str | None,
    typer.Option("--text", help="The text, in UTF-8; for embeddings a sentence a line.", rich_help_panel=PANEL),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        "--tokenizer", help="tokenizer.json, or its folder; by default that beside the model.", rich_help_panel=PANEL
    ),
]
Window = Annotated[
    int | None,
    typer.Option(
        "--window",
        help="Tokens that the model reads at once; 512 by default, for embeddings 256 of a line.",
        rich_help_panel=PANEL,
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        "--stride",
        help="From one window to the next; those that two share are context alone in the second. A whole window by "
        "default.",
        rich_help_panel=PANEL,
    ),
]
Tokens = Annotated[
    int | None, typer.Option("--tokens", help="Of the text, from its beginning; all by default.", rich_help_panel=PANEL)
]


def text_of(
    text: str | None, tokenizer: str | None, window: int | None, stride: int | None, tokens: int | None
) -> Text | None:
    """The text that is meant; None without one.

    Raises:
        UsageError: What is said of a text is given without one, or makes no sense.
        OnnxpressError: A file is not there.
    """
    settings = {"--tokenizer": tokenizer, "--window": window, "--stride": stride, "--tokens": tokens}
    if text is None:
        if idle := [name for name, value in settings.items() if value is not None]:
            raise UsageError(f"{', '.join(idle)}: read with --text alone")
        return None
    read = Text(text, tokenizer, window, stride, tokens)
    read.check_files()
    return read
