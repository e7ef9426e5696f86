"""Encoders of text judged by how far the vectors of sentences have moved, which needs no labels.

    cosine     = 1/n sum_i <u_i, v_i>
    neighbours = 1/n #{i : argmax_{j != i} <u_i, u_j> = argmax_{j != i} <v_i, v_j>}

with u_i the float model's vector of sentence i and v_i the judged model's, both of length one: how alike each is to
itself, and how often a search for the nearest of the others still finds the same. Of both, more is better.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from onnxpress.models.tasks import Score
from onnxpress.models.tasks.similarity import MOST_TOKENS, Embedder, fits

from ..calibration.files import TOKENIZER
from ..calibration.tokens import read_text
from ..errors import OnnxpressError, UsageError, option
from .texts import NEEDS_OF_EMBEDDINGS

if TYPE_CHECKING:
    import onnxruntime as ort

    from .texts import Text

_ROWS = 1024
"""Sentences whose neighbours are looked for at once, so that memory does not grow with the square of their number."""

Vectors = npt.NDArray[np.float64]


class Sentences:
    """The lines of a text, and the vectors that a float model gives them."""

    def __init__(
        self, text: Text, path: Path | None, source: str, reference: Callable[[], ort.InferenceSession]
    ) -> None:
        """Read the text.

        Args:
            text: A sentence a line; its window is the most tokens of one.
            path: Of the float model, beside which its tokenizer may lie.
            source: What to call what is judged in an error.
            reference: Opens the float model, when something is judged for the first time.

        Raises:
            UsageError: It has fewer than two sentences, or settings that sentences do not read.
            OnnxpressError: It cannot be read, or there is no tokenizer.
        """
        idle = [option(key) for key in ("stride", "tokens") if getattr(text, key) is not None]
        if idle:
            raise UsageError(f"{' and '.join(idle)}: read with windows of a text, and embeddings take it line by line")
        self._lines = [line.strip() for line in read_text(Path(text.path)).splitlines() if line.strip()]
        if len(self._lines) < 2:
            raise UsageError(f"{text.path}: has fewer than two lines; give a sentence a line")
        self._tokenizer, self._most = _tokenizer_of(text, path), text.window or MOST_TOKENS
        self._source, self._reference = source, reference
        self._wanted: Vectors | None = None

    def judge(self, session: ort.InferenceSession) -> Score:
        """The mean cosine of a model's vectors with the float model's, and what else there is to say; NaN where one is.

        Raises:
            UsageError: One of the two is no encoder of text, or their vectors have different widths.
            OnnxpressError: The tokenizer cannot be read, or the float model gives no vectors.
        """
        found = None
        if self._wanted is None:
            reference = self._reference()
            self._wanted = self._of_float(reference)
            found = self._wanted if reference is session else None
        wanted, found = self._wanted, self._vectors(session, self._source) if found is None else found
        if wanted.shape != found.shape:
            raise UsageError(
                f"{self._source}: has vectors of {found.shape[1]} numbers, the float model of {wanted.shape[1]}"
            )
        cosines = (wanted * found).sum(axis=1)
        same = float(np.mean(nearest(wanted) == nearest(found)))
        told = {"least cosine": float(cosines.min()), "same nearest neighbour": same, "sentences": len(self._lines)}
        return Score(float(cosines.mean()), told)

    def _of_float(self, reference: ort.InferenceSession) -> Vectors:
        vectors = self._vectors(reference, "the float model")
        if not np.isfinite(vectors).all():
            raise OnnxpressError("the float model's vectors are NaN or infinite; nothing can be measured by them")
        return vectors

    def _vectors(self, session: ort.InferenceSession, who: str) -> Vectors:
        """Of all sentences, [sentences, width]."""
        if not fits(session):
            raise UsageError(f"{who}: cannot be judged by embeddings; it needs {NEEDS_OF_EMBEDDINGS}")
        embedder = Embedder(session, self._tokenizer, self._tokenizer, self._most)
        vectors: Vectors = embedder(self._lines).astype(np.float64)
        return vectors


def _tokenizer_of(text: Text, path: Path | None) -> Path:
    """The tokenizer.json that is named, or that beside the model."""
    if text.tokenizer is None and path is None:
        raise UsageError(f"a text needs the model's tokenizer: give {option('tokenizer')}")
    named: Any = path.with_name(TOKENIZER) if text.tokenizer is None and path is not None else text.tokenizer
    file = Path(named) / TOKENIZER if Path(named).is_dir() else Path(named)
    if not file.is_file():
        raise OnnxpressError(f"{file}: no such file; give the model's tokenizer.json")
    return file


def nearest(vectors: Vectors) -> npt.NDArray[np.int64]:
    """For each row of [rows, width] the other row with the largest product with it, the first of equal ones."""
    found = []
    for begin in range(0, len(vectors), _ROWS):
        products = vectors[begin : begin + _ROWS] @ vectors.T
        places = np.arange(len(products))
        products[places, begin + places] = -np.inf
        found.append(products.argmax(axis=1))
    return np.concatenate(found)
