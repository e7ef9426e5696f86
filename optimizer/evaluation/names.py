"""Names of metrics and tasks, which are refused before anything is read and anything slow is imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnxpress.models import task_names

from ..errors import UsageError, option, suggestion
from ..user_functions import load_function
from .texts import TEXT_TASKS, Text

UserMetric = str | Callable[[Any], float]
"""A task's name, "module:function" or a function of an `onnxruntime.InferenceSession`; see `TextMetric`, too."""


def check_metric_name(name: UserMetric) -> None:
    """Refuse at once what is a metric of no model.

    Raises:
        UsageError: There is no such task or function.
    """
    if not isinstance(name, str):
        return
    known = [*task_names.NAMES, *TEXT_TASKS]
    if ":" in name:
        load_function(name)
    elif name not in known:
        raise UsageError(f'no metric "{name}"; {suggestion(name, [*known, "module:function"])}')


def is_on_text(task: str | None, text: Text | None) -> bool:
    """Whether a task is one that reads a text.

    Raises:
        UsageError: There is a text, and the task reads none.
    """
    if text is not None and task is not None and task not in TEXT_TASKS:
        raise UsageError(f"{option('text')} is read by {', '.join(TEXT_TASKS)} alone, not by the task '{task}'")
    return text is not None or task in TEXT_TASKS


def check_task(task: str | None, text: Text | None) -> None:
    """Refuse at once what is a task of no model, or lacks its text.

    Raises:
        UsageError: There is no such task, or it reads a text and there is none, or reads none and there is one.
    """
    known = [*task_names.NAMES, *TEXT_TASKS]
    if task is not None and task not in known:
        raise UsageError(f'no task "{task}"; {suggestion(task, known)}')
    if is_on_text(task, text) and text is None:
        raise lacks_text(str(task))


def lacks_text(name: str) -> UsageError:
    """The error for a task on a text that has none."""
    return UsageError(f"{name} needs a text: give {option('text')}")
