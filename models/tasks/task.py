"""What a task with labels is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime as ort


@dataclass(frozen=True)
class Score:
    """How well a model did.

    Attributes:
        value: The task's metric; more is better.
        details: Other figures by name, and what they were measured on.
    """

    value: float
    details: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A task with labels.

    Attributes:
        name: What users call it.
        metric: What the value of its score is.
        description: One line.
        needs: What a model must have to be judged by it, for the error message.
        fits: Whether a model has it.
        evaluate: Runs the task on a session; the path is that of the model, whose tokenizer may lie beside it.
    """

    name: str
    metric: str
    description: str
    needs: str
    fits: Callable[[ort.InferenceSession], bool]
    evaluate: Callable[[ort.InferenceSession, Path], Score]
