"""Judging a model file by a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnxpress import custom_ops
from onnxpress.optimizer import storage
from onnxpress.optimizer.analysis import session as sessions
from onnxpress.optimizer.errors import OnnxpressError

from .tasks import choose

if TYPE_CHECKING:
    import onnxruntime as ort


@dataclass(frozen=True)
class TaskResult:
    """One model on one task.

    Attributes:
        model: As the caller named it.
        task: Name of the task.
        metric: What `value` is.
        value: More is better.
        details: Other figures by name.
    """

    model: str
    task: str
    metric: str
    value: float
    details: Mapping[str, float | int | str]


def evaluate(
    model: str | Path, task: str | None = None, session_options: ort.SessionOptions | None = None
) -> TaskResult:
    """Run a task on a model.

    Args:
        model: A file, a folder or a name of the catalogue.
        task: A name of `tasks.TASKS`; None takes the first that fits the model.
        session_options: For ONNX Runtime. The custom ops are registered with them where the model uses them.

    Raises:
        UsageError: There is no such task, or none fits.
        OnnxpressError: The model or the task's data cannot be had, or the model does not run.
    """
    path = storage.resolve(model)
    ours = sessions.uses_our_ops(storage.load(path))
    options = session_options or sessions.session_options()
    if ours:
        custom_ops.register(options)
    session = sessions.open_session(path, options)
    chosen = choose(session, task, str(model))
    try:
        score = chosen.evaluate(session, path)
    except OnnxpressError:
        raise
    except Exception as error:
        # ONNX Runtime raises a type for each of its status codes, with no common base.
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise OnnxpressError(f"{model}: fails in the task '{chosen.name}': {str(error).splitlines()[0]}") from error
    return TaskResult(str(model), chosen.name, chosen.metric, score.value, score.details)
