"""Agreement of a classifier with the float32 model that it was made from, on crops of photographs.

No package has labelled photographs in number; but what a smaller form of a model must do is say what the model says.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from onnxpress.optimizer.runtime import session as sessions

from .. import catalogue, photographs
from ..classifiers import CLASSIFIERS, SIDE, Classifier
from .task import Score, Task

if TYPE_CHECKING:
    import onnxruntime as ort

_CROPS = 300
_SEED = 0


def agreement(session: ort.InferenceSession, _model: Path) -> Score:
    """Share of 300 crops whose most likely class is the one that the catalogue's float32 model finds.

    Besides, the mean and the largest distance of the probabilities, half the sum of their absolute differences: where
    nearly all pictures are of one class, it says more than the share.
    """
    classifier = next(known for known in CLASSIFIERS if known.is_behind(session))
    original = sessions.open_session(catalogue.path(classifier.name), sessions.session_options())
    ours, theirs = (_probabilities(judged, classifier) for judged in (session, original))
    distances = np.abs(ours - theirs).sum(axis=1) / 2
    return Score(
        float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()),
        {
            "crops": _CROPS,
            "mean distance": float(distances.mean()),
            "largest distance": float(distances.max()),
            "original": classifier.name,
        },
    )


def _probabilities(session: ort.InferenceSession, classifier: Classifier) -> npt.NDArray[np.float64]:
    first = session.get_outputs()[0].name
    crops = photographs.crops(_CROPS, SIDE, _SEED, "test")
    scores = [session.run([first], {classifier.input: classifier.preprocess(crop)})[0][0] for crop in crops]
    return probabilities(np.array(scores, np.float64))


def probabilities(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Softmax of rows of logits; rows that are probabilities by their sum and sign stay."""
    if (scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, atol=1e-2):
        return scores
    powers: npt.NDArray[np.float64] = np.exp(scores - scores.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def fits(session: ort.InferenceSession) -> bool:
    """Whether the model has the input and the classes of a classifier of the catalogue."""
    return any(known.is_behind(session) for known in CLASSIFIERS)


TASK = Task(
    "agreement",
    "agreement",
    "share of crops of photographs that are given the class that the float32 original gives",
    f"the input and the number of classes of {' or '.join(known.name for known in CLASSIFIERS)}",
    fits,
    agreement,
)
