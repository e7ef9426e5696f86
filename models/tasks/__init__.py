"""Tasks with labels, to judge a model by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from onnxpress.optimizer.errors import UsageError

from . import reading, similarity


@dataclasses.dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        name: What users call it.
        metric: What `evaluate` returns; more is better.
        description: One line.
        evaluate: From an ONNX Runtime session to the metric.
    """

    name: str
    metric: str
    description: str
    evaluate: Callable[[Any], float]


TASKS = {
    task.name: task
    for task in (
        Task("lee", "Pearson", "similarity of 50 news texts against a human matrix", similarity.lee),
        Task("wordsim353", "Spearman", "relatedness of 353 pairs of words against people", similarity.wordsim353),
        Task("simlex999", "Spearman", "similarity of 999 pairs of words against people", similarity.simlex999),
        Task("reading", "lines read", "share of rendered lines of text that are read without error", reading.accuracy),
    )
}


def for_model(inputs: list[str]) -> Task:
    """The task that fits a model with these inputs.

    Raises:
        UsageError: None does.
    """
    if "input_ids" in inputs and len(inputs) <= 3:
        return TASKS["lee"]
    if inputs == ["x"]:
        return TASKS["reading"]
    raise UsageError(f"no task fits a model with the inputs {', '.join(inputs)}; name one with --task")
