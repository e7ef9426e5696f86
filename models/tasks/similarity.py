"""Similarity of text embeddings against human judgements.

An embedding is the mean of the last hidden states of a text's tokens (Reimers and Gurevych, 2019, arXiv:1908.10084,
section 3), or the output `sentence_embedding` where the model has one; the similarity of two texts is the cosine of the
angle between theirs.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from onnxpress.optimizer.errors import OnnxpressError, lacking

from .. import catalogue
from ..fetch import provide
from .task import Score, Task

if TYPE_CHECKING:
    import onnxruntime as ort

Floats = npt.NDArray[np.floating[Any]]

SENTENCE = "sentence_embedding"
"""Output of an encoder that makes one vector of a text itself, as exporters call it."""
_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
MOST_TOKENS = 256
"""To which texts are cut, as the model card of all-MiniLM-L6-v2 has it; no Lee document is longer."""
_BATCH = 16


def lee(session: ort.InferenceSession, model: Path) -> Score:
    """Pearson correlation with the mean human similarity over the 1,225 pairs of the 50 Lee documents.

    The pairs are the upper triangle of the matrix without its diagonal, where people and models agree on 1. Source:
    Lee, Pincombe and Welsh, "An empirical evaluation of models of text document similarity", 2005.
    """
    folder = provide(catalogue.SIMILARITY_DATA)
    texts = (folder / "lee.cor").read_text(encoding="latin-1").splitlines()
    human = np.loadtxt(folder / "similarities0-1.txt")
    pairs = np.triu_indices(len(texts), 1)
    embedder = Embedder(session, model)
    vectors = embedder(texts)
    found = _correlations((vectors @ vectors.T)[pairs], human[pairs])
    return Score(found["pearson"], {**found, "pairs": len(pairs[0]), "tokenizer": embedder.tokenizer_name})


def word_pairs(file: str, session: ort.InferenceSession, model: Path) -> Score:
    """Spearman correlation over a list of word pairs, one tab-separated pair and its human score a line."""
    lines = (provide(catalogue.SIMILARITY_DATA) / file).read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    embedder = Embedder(session, model)
    left, right = (embedder([row[i] for row in rows]) for i in (0, 1))
    found = _correlations((left * right).sum(axis=1), np.array([float(row[2]) for row in rows]))
    return Score(found["spearman"], {**found, "pairs": len(rows), "tokenizer": embedder.tokenizer_name})


def _correlations(ours: Floats, human: Floats) -> dict[str, float]:
    return {
        "pearson": float(np.corrcoef(ours, human)[0, 1]),
        "spearman": float(np.corrcoef(ranks(ours), ranks(human))[0, 1]),
    }


def ranks(values: Floats) -> Floats:
    """Rank of each value from 1, equal ones sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    means: Floats = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return means


def fits(session: ort.InferenceSession) -> bool:
    """Whether the model is a text encoder: token ids in, hidden states out."""
    inputs = {node.name for node in session.get_inputs()}
    shape = session.get_outputs()[0].shape
    return {"input_ids", "attention_mask"} <= inputs <= _INPUTS and shape is not None and len(shape) == 3


def load_tokenizer(file: Path, most_tokens: int) -> Any:
    """The tokenizer of a file, `tokenizers.Tokenizer`, which cuts texts to so many tokens and does not pad.

    Raises:
        OnnxpressError: The extra "models" is not installed, or the file cannot be read.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise OnnxpressError(lacking("text", "the package tokenizers", "models")) from error
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exceptions
        raise OnnxpressError(f"{file}: not a tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(most_tokens)
    return tokenizer


class Embedder:
    """Texts -> embeddings of length one, by a text encoder.

    Args:
        session: Takes int64 `input_ids`, `attention_mask` and perhaps `token_type_ids` [batch, sequence]; its first
            output is [batch, sequence, hidden], and `sentence_embedding` [batch, width] is taken where it is there.
        model: The model's path. The tokenizer is the `tokenizer.json` beside it or, where there is none, minilm's.
        tokenizer: Another tokenizer.json.
        most_tokens: To which texts are cut.

    Raises:
        OnnxpressError: The extra "models" is not installed, or the tokenizer cannot be read.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        model: Path,
        tokenizer: Path | None = None,
        most_tokens: int = MOST_TOKENS,
    ) -> None:
        file, self.tokenizer_name = tokenizer or model.parent / "tokenizer.json", "beside the model"
        if not file.is_file():
            file, self.tokenizer_name = provide(catalogue.entry("minilm")) / "tokenizer.json", "minilm"
        self._tokenizer = load_tokenizer(file, most_tokens)
        self._tokenizer.enable_padding()
        self._session = session
        self._inputs = {node.name for node in session.get_inputs()}

    def __call__(self, texts: list[str]) -> npt.NDArray[np.float32]:
        """Embed texts: float32 [texts, width]."""
        # Texts of similar length together: padding is work for nothing.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors: dict[int, npt.NDArray[np.float32]] = {}
        for begin in range(0, len(order), _BATCH):
            chosen = order[begin : begin + _BATCH]
            vectors.update(zip(chosen, self._batch([texts[i] for i in chosen]), strict=True))
        return np.stack([vectors[i] for i in range(len(texts))])

    def _batch(self, texts: list[str]) -> npt.NDArray[np.float32]:
        encoded = self._tokenizer.encode_batch(texts)
        ids = np.array([e.ids for e in encoded], np.int64)
        mask = np.array([e.attention_mask for e in encoded], np.int64)
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        outputs = [node.name for node in self._session.get_outputs()]
        wanted = SENTENCE if SENTENCE in outputs else outputs[0]
        total = self._session.run([wanted], {name: feeds[name] for name in self._inputs})[0].astype(np.float32)
        if wanted != SENTENCE:
            # A sum has the direction of the mean.
            total = (total * mask[:, :, None].astype(np.float32)).sum(axis=1)
        vectors: npt.NDArray[np.float32] = total / np.linalg.norm(total, axis=1, keepdims=True)
        return vectors


_NEEDS = "the inputs input_ids and attention_mask and a first output [batch, sequence, hidden]"

TASKS = (
    Task("lee", "Pearson", "similarity of 50 news texts against people", _NEEDS, fits, lee),
    Task(
        "wordsim353",
        "Spearman",
        "relatedness of 353 pairs of words against people",  # Finkelstein et al., 2002
        _NEEDS,
        fits,
        partial(word_pairs, "wordsim353.tsv"),
    ),
    Task(
        "simlex999",
        "Spearman",
        "similarity of 999 pairs of words against people",  # Hill, Reichart and Korhonen, 2015
        _NEEDS,
        fits,
        partial(word_pairs, "simlex999.txt"),
    ),
)
