"""Speech or not: the decisions of a detector on synthetic sounds, beside those of the float32 model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from onnxpress.optimizer.runtime import session as sessions

from .. import catalogue, speech
from .task import Score, Task

if TYPE_CHECKING:
    import onnxruntime as ort

_PHRASES = 12
_SEED = 0
_THRESHOLD = 0.5
_CONTEXT = 64  # samples of the frame before that the model sees again
_STATE = (2, 1, 128)


def decisions(session: ort.InferenceSession, _model: Path) -> Score:
    """Share of the frames of 32 ms for which the decision is that of the catalogue's float32 model.

    Besides, the share for which it is right; the model lags a few frames behind the sound by design.
    """
    sound, spoken = speech.clip(_PHRASES, _SEED)
    original = sessions.open_session(catalogue.path("silero-vad"), sessions.session_options())
    ours, theirs = (np.array([p for _, p in listen(judged, sound)]) for judged in (session, original))
    return Score(
        float(((ours >= _THRESHOLD) == (theirs >= _THRESHOLD)).mean()),
        {
            "frames": len(ours),
            "accuracy": float(((ours >= _THRESHOLD) == spoken).mean()),
            "largest difference": float(np.abs(ours - theirs).max()),
        },
    )


def listen(
    session: ort.InferenceSession, sound: npt.NDArray[np.float32]
) -> Iterator[tuple[dict[str, np.ndarray[Any, Any]], float]]:
    """Hear a sound frame by frame: of each, what is fed and the probability of speech.

    Args:
        session: Takes float32 `input` [1, 576], float32 `state` [2, 1, 128] and int64 `sr`; returns the probability
            [1, 1] and the next state.
        sound: At 16 kHz, a whole number of frames.
    """
    state, context = np.zeros(_STATE, np.float32), np.zeros(_CONTEXT, np.float32)
    for frame in sound.reshape(-1, speech.FRAME):
        heard = np.concatenate([context, frame])
        feeds = {"input": heard[None], "state": state, "sr": np.array(speech.RATE, np.int64)}
        probability, state = session.run(None, feeds)
        context = heard[-_CONTEXT:]
        yield feeds, float(probability.reshape(()))


def fits(session: ort.InferenceSession) -> bool:
    """Whether the model is the detector of the catalogue: a sound, a state and a rate in."""
    return {node.name for node in session.get_inputs()} == {"input", "state", "sr"}


TASK = Task(
    "speech",
    "agreement",
    "share of frames of synthetic sound that are found speech or not as by the float32 original",
    "the inputs input, state and sr",
    fits,
    decisions,
)
