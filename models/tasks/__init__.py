"""Tasks with labels, to judge a model by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxpress.optimizer.errors import UsageError, suggestion

from ..task_names import NAMES
from . import agreement, detection, reading, sentiment, similarity, speech
from .task import Score, Task

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["TASKS", "Score", "Task", "choose"]

_KNOWN = {
    task.name: task
    for task in (
        *similarity.TASKS,
        sentiment.TASK,
        sentiment.PROBE,
        sentiment.REVIEWS,
        reading.TASK,
        detection.TASK,
        agreement.TASK,
        speech.TASK,
    )
}
TASKS = {name: _KNOWN[name] for name in NAMES}
"""All tasks by name; of those that fit a model, the first is its default."""


def choose(session: ort.InferenceSession, name: str | None, model: str) -> Task:
    """The task of that name, or without one the first that fits.

    Args:
        session: Of the model to judge.
        name: A name of `TASKS`, or None.
        model: What to call the model in an error.

    Raises:
        UsageError: There is no such task, or it does not fit the model.
    """
    if name is None:
        for task in TASKS.values():
            if task.fits(session):
                return task
        raise UsageError(
            f"{model}: no task fits this model; there are {', '.join(TASKS)}; a language model is judged on a text of "
            "yours by perplexity and kl, an encoder by embeddings; onnxpress compare is for any model"
        )
    if name not in TASKS:
        raise UsageError(f'no task "{name}"; {suggestion(name, TASKS)}')
    task = TASKS[name]
    if not task.fits(session):
        raise UsageError(f"{model}: the task '{name}' does not fit this model; it needs {task.needs}")
    return task
