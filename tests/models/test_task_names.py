"""The names that are known before a task is imported are those of the tasks, in their order."""

from __future__ import annotations

from onnxpress.models.task_names import NAMES
from onnxpress.models.tasks import _KNOWN, TASKS


def test_names_are_those_of_the_tasks():
    assert tuple(TASKS) == NAMES
    assert set(_KNOWN) == set(NAMES)
