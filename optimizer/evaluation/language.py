"""Language models judged on a text, which needs no labels: by its perplexity, and by how far predictions have moved.

    perplexity = exp(-1/n sum_i log q(t_i | tokens before it in its window))
    kl         = 1/n sum_i sum_v p(v | the same) (log p(v | the same) - log q(v | the same)), in nats per token

with q the model's distribution of the next token and p the float model's. The text is cut into windows. Where they
overlap, the tokens that a window shares with the one before are context alone: each token counts once. The first token
of a text, and of each window where none overlap, has nothing before it and does not count; nor do tokens behind the
last full window. This is how perplexities of quantized models are given (Frantar et al., GPTQ, arXiv:2210.17323,
without overlap). Of both, less is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxpress.models.tasks import Score

from ..calibration.files import TOKENIZER
from ..calibration.inputs import inputs_of, needed
from ..calibration.tokens import tokens_of
from ..calibration.windows import SEGMENTS, Decoder, begins, is_past, tells_sentences_apart
from ..errors import OnnxpressError, UsageError, option
from ..runtime.feeds import Feeds, fitted
from .embeddings import Sentences
from .likelihood import Divergence, Logits, divergence, surprise
from .names import lacks_text
from .texts import EMBEDDINGS, PERPLEXITY, Text

if TYPE_CHECKING:
    import onnxruntime as ort

_LOGITS = "logits"
_SEEN = 0.1
"""Share of its logits by which a model that sees a token changes; one scale for all activations changes less."""


class Passage:
    """The windows of a text for a model.

    Attributes:
        counted: Tokens that are foretold.
        length: Tokens of a window.
        rows: The least number that is no token of the text.
        output: Where the model has its logits.
    """

    def __init__(self, text: Text, model: ir.Model, path: Path | None) -> None:
        """Read the text.

        Args:
            text: The text.
            model: That is to read it.
            path: Of the model, beside which its tokenizer may lie.

        Raises:
            UsageError: The model does not read text, the text is too short, or the tokenizer another model's.
            OnnxpressError: The text or the tokenizer cannot be read.
        """
        tokenizer = text.tokenizer or (path.with_name(TOKENIZER) if path is not None else None)
        if tokenizer is None:
            raise UsageError(f"a text needs the model's tokenizer: give {option('tokenizer')}")
        inputs, where = needed(inputs_of(model)), str(text.path)
        if tells_sentences_apart(inputs):
            raise UsageError(f"it takes '{SEGMENTS}', as encoders do, which see the tokens to foretell; {_MISSING}")
        self._decoder = Decoder(inputs, text.window, where)
        self._is_causal = any(map(is_past, inputs))  # else nobody knows before it has run
        self.length = self._decoder.length
        self._stride = text.stride or self.length
        if self._stride > self.length:
            raise UsageError(f"{option('stride')} is {self._stride}, must be at most the {self.length} of a window")
        if self.length < 2:
            raise UsageError(f"{where}: a window of {self.length} token foretells nothing")
        if text.tokens is not None and text.tokens < self.length:
            raise UsageError(f"{option('tokens')} is {text.tokens}, fewer than the {self.length} of a window")
        self.output = logits_of(model)
        self._tokens = tokens_of(Path(text.path), tokenizer, inputs)[: text.tokens]
        self._starts = begins(len(self._tokens), self.length, self._stride, where, "window")
        self.counted = sum(self.length - first for _, first in self._places())
        self.rows = int(self._tokens.max()) + 1

    def _places(self) -> Iterator[tuple[int, int]]:
        """Where windows begin, and the first token that counts of each."""
        for start in self._starts:
            yield start, 1 if start == 0 else max(1, self.length - self._stride)

    def __iter__(self) -> Iterator[tuple[Feeds, int, npt.NDArray[np.int64]]]:
        """The inputs of each window, the first token that counts, and all that do."""
        for start, first in self._places():
            tokens = self._tokens[start : start + self.length]
            yield self._decoder.feeds(tokens), first, tokens[first:]

    @property
    def details(self) -> dict[str, int]:
        """What was read."""
        return {"tokens": self.counted, "windows": len(self._starts), "window": self.length, "stride": self._stride}

    def refuse_encoder(self, session: Any, who: str) -> None:
        """Refuse a model that sees the tokens to foretell: another last token changes what it says before that one.

        Raises:
            UsageError: It does, or as `logits`.
            OnnxpressError: ONNX Runtime cannot run it.
        """
        if self._is_causal:
            return
        tokens = self._tokens[: self.length].copy()
        says = self.logits(session, self._decoder.feeds(tokens), 1, who)[-1]
        tokens[-1] = (tokens[-1] + 1) % self.rows
        others = self.logits(session, self._decoder.feeds(tokens), 1, who)[-1]
        if np.linalg.norm(others - says) > _SEEN * np.linalg.norm(says - says.mean()):
            raise UsageError(f"{who}: what it says of a token depends on those behind it, as of an encoder; {_MISSING}")
        self._is_causal = True

    def logits(self, session: Any, feeds: Feeds, first: int, who: str) -> Logits:
        """What a model says before each token that counts, [tokens, vocabulary].

        Raises:
            UsageError: It has other inputs, or no logits at each position.
            OnnxpressError: ONNX Runtime cannot run it.
        """
        try:
            (found,) = session.run([self.output], fitted(feeds, session.get_inputs(), who))
        except OnnxpressError:
            raise
        except Exception as error:  # ONNX Runtime raises a type for each of its status codes
            raise OnnxpressError(f"{who}: cannot run: {str(error).strip().splitlines()[0]}") from error
        if found.ndim != 3 or found.shape[:2] != (1, self.length) or found.shape[2] < self.rows:
            raise UsageError(
                f"{who}: output '{self.output}' is {list(found.shape)} for {self.length} tokens with numbers up to "
                f"{self.rows - 1}; {_MISSING}"
            )
        logits: Logits = found[0, first - 1 : -1]
        return logits


_MISSING = (
    "perplexity and kl need logits of the next token at each position; for an encoder take embeddings, a task or, in "
    "compare and study, the outputs"
)


def logits_of(model: ir.Model) -> str:
    """The output that may be the logits: the first of three axes, one that is called so before others.

    Raises:
        UsageError: There is none, or it has fewer columns than the table of tokens has rows.
    """
    outputs = [value for value in model.graph.outputs if value.shape is None or len(value.shape) == 3]
    outputs.sort(key=lambda value: _LOGITS not in (value.name or ""))
    if not outputs:
        raise UsageError(f"no output of the model has three axes; {_MISSING}")
    rows = next((entry.limit for entry in inputs_of(model) if entry.name == "input_ids"), None)
    width = outputs[0].shape[2] if outputs[0].shape is not None else None
    if isinstance(width, int) and rows is not None and 2 * width < rows:
        raise UsageError(f"output '{outputs[0].name}' has {width} columns, and there are {rows} tokens; {_MISSING}")
    return outputs[0].name or ""


def perplexity(passage: Passage, session: ort.InferenceSession, who: str) -> Score:
    """Of a model on a text; NaN where a logit is.

    Raises:
        UsageError: The model is no language model.
        OnnxpressError: ONNX Runtime cannot run it.
    """
    passage.refuse_encoder(session, who)
    total = sum(surprise(passage.logits(session, feeds, first, who), tokens) for feeds, first, tokens in passage)
    return Score(_perplexity(total, passage), passage.details)


def kl(passage: Passage, reference: ort.InferenceSession, session: ort.InferenceSession, who: str) -> Score:
    """Mean divergence of a model's predictions from a reference's; both run window by window, and no more is kept.

    Raises:
        UsageError: One is no language model, or they have other inputs or vocabularies.
        OnnxpressError: ONNX Runtime cannot run one.
    """
    passage.refuse_encoder(reference, "the float model")
    total = Divergence()
    for feeds, first, tokens in passage:
        wanted = passage.logits(reference, feeds, first, "the float model")
        found = wanted if session is reference else passage.logits(session, feeds, first, who)
        if wanted.shape != found.shape:
            raise UsageError(f"{who}: has a vocabulary of {found.shape[1]}, the float model one of {wanted.shape[1]}")
        total += divergence(wanted, found, tokens)
    if not math.isfinite(total.reference_surprise):
        raise OnnxpressError("the float model's logits are NaN or infinite; nothing can be measured against them")
    told = {
        "same most likely token": total.same / passage.counted,
        PERPLEXITY: _perplexity(total.surprise, passage),
        "of float32": _perplexity(total.reference_surprise, passage),
    }
    return Score(total.nats / passage.counted, {**told, **passage.details})


def _perplexity(nats: float, passage: Passage) -> float:
    try:
        return math.exp(nats / passage.counted)
    except OverflowError:
        return math.inf


def text_judge(
    name: str,
    text: Text | None,
    model: ir.Model,
    path: Path | None,
    source: str,
    reference: Callable[[], ort.InferenceSession] | None = None,
) -> Callable[[ort.InferenceSession], Score]:
    """What judges sessions of a model, and of what is made of it, by a text task.

    Args:
        name: Of the task.
        text: The text.
        model: The float model for kl and embeddings; else the model itself.
        path: Of the model, beside which its tokenizer may lie.
        source: What to call what is judged in an error.
        reference: Opens the float model for kl and embeddings.

    Raises:
        UsageError: There is no text, or it does not fit the model.
        OnnxpressError: The text or the tokenizer cannot be read.
    """
    if text is None:
        raise lacks_text(name)
    if name == EMBEDDINGS:
        return Sentences(text, path, source, _needed(name, reference)).judge
    try:
        passage = Passage(text, model, path)
    except UsageError as error:
        raise UsageError(f"{source}: cannot be judged by {name}: {error}") from error
    if name == PERPLEXITY:
        return lambda session: perplexity(passage, session, source)
    float_model = _needed(name, reference)()
    return lambda session: kl(passage, float_model, session, source)


def _needed(name: str, reference: Callable[[], ort.InferenceSession] | None) -> Callable[[], ort.InferenceSession]:
    if reference is None:
        raise UsageError(f"{name} compares with a float model: name it, too")
    return reference
