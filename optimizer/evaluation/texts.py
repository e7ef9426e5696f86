"""Texts to judge models on, and what is told of a model by one; `language` and `embeddings` read them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..calibration.files import require_tokenizers, tokenizer_file, unreadable
from ..errors import UsageError, named_alone, option

PERPLEXITY, KL, EMBEDDINGS = "perplexity", "kl", "embeddings"
COMPARING = (KL, EMBEDDINGS)
"""Those that compare with the float model, and tell nothing of a model alone."""


@dataclasses.dataclass(frozen=True)
class TextTask:
    """What models are judged by on a text of the user's; less is better, except of embeddings.

    Attributes:
        name: What users call it.
        metric: What its value is.
        description: One line.
        needs: What a model must have to be judged by it.
    """

    name: str
    metric: str
    description: str
    needs: str


_NEEDS = "tokens as input, logits of the next token at each position as output, and a text"
NEEDS_OF_EMBEDDINGS = (
    "the inputs input_ids and attention_mask, a first output [batch, sequence, hidden], and a text of sentences"
)
TEXT_TASKS = {
    task.name: task
    for task in (
        TextTask(
            PERPLEXITY, "perplexity, less is better", "how well a language model foretells a text of yours", _NEEDS
        ),
        TextTask(
            KL,
            "nats per token, less is better",
            "how far predictions on a text have moved from the float model's",
            _NEEDS,
        ),
        TextTask(
            EMBEDDINGS,
            "cosine",
            "how near an encoder's vectors of the sentences of a text, one a line, are to the float model's",
            NEEDS_OF_EMBEDDINGS,
        ),
    )
}
"""All by name."""


@named_alone
@dataclasses.dataclass(frozen=True)
class Text:
    """A text to judge models on.

    Attributes:
        path: In UTF-8.
        tokenizer: The tokenizer.json, or its folder; by default that beside the model.
        window: Tokens that the model reads at once: 512, or as many as it has positions, or the model's own by default;
            of embeddings, to which sentences are cut, 256.
        stride: From one window to the next; a whole one by default.
        tokens: Of the text, from its beginning; all by default.
    """

    path: str | Path
    tokenizer: str | Path | None = None
    window: int | None = None
    stride: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UsageError: One makes no sense.
        """
        for name, least in (("window", 2), ("stride", 1), ("tokens", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{option(name)} is {value}, must be at least {least}")
        if self.window is not None and self.stride is not None and self.stride > self.window:
            raise UsageError(
                f"{option('stride')} is {self.stride}, must be at most the {option('window')} of {self.window}: tokens "
                "between windows would not count"
            )

    def check_files(self) -> None:
        """Refuse files that are not there, and a text that nothing here can read.

        Raises:
            OnnxpressError: It names the first, or the package that is not installed.
        """
        try:
            Path(self.path).stat()
        except OSError as error:
            raise unreadable(self.path, error) from error
        require_tokenizers()
        if self.tokenizer is not None:
            tokenizer_file(self.tokenizer)


class TextMetric(str):
    """The name of a text task that knows its text, so that it is a metric wherever a name is one."""

    text: Text | None

    def __new__(cls, name: str, text: Text | None = None) -> TextMetric:
        """A name with its text."""
        made = super().__new__(cls, name)
        made.text = text
        return made
