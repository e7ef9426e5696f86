"""What models of the catalogue score in float32, computed once for all tests."""

from __future__ import annotations

from functools import cache

from onnxpress.models.evaluate import TaskResult, evaluate
from onnxpress.models.tasks import reading


def float_score(name: str, task: str | None = None) -> TaskResult:
    """Of a model on a task, by default its own; of as many lines as are read now."""
    return _score(name, task, reading._LINES)


@cache
def _score(name: str, task: str | None, _lines: int) -> TaskResult:
    return evaluate(name, task)
