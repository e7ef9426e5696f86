"""Judging a model file by a task."""

from __future__ import annotations

import difflib
from typing import NamedTuple

from onnxpress.optimizer import storage
from onnxpress.optimizer.analysis.session import open_session, session_options, uses_our_ops
from onnxpress.optimizer.errors import UsageError

from .tasks import TASKS, for_model


class Result(NamedTuple):
    """One model on one task."""

    model: str
    task: str
    metric: str
    value: float


def evaluate(model: str, task: str | None = None) -> Result:
    """Run a task on a model.

    Args:
        model: A file, a folder or a name of the catalogue.
        task: A name of `TASKS`; None takes the one that fits the model's inputs.

    Raises:
        UsageError: There is no such task, or none fits.
        OnnxpressError: The model or the task's data cannot be had.
    """
    if task is not None and task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(TASKS)}"
        raise UsageError(f'no task "{task}"; {hint}')
    path = storage.resolve(model)
    session = open_session(path, session_options(ours=uses_our_ops(storage.load(path))))
    inputs = [node.name for node in session.get_inputs()]
    chosen = TASKS[task] if task is not None else for_model(inputs)
    if chosen.name != for_model(inputs).name and "input_ids" not in inputs:
        raise UsageError(f"{model}: the task {chosen.name} does not fit a model with the inputs {', '.join(inputs)}")
    return Result(model, chosen.name, chosen.metric, chosen.evaluate(session))
