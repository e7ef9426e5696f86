"""What models of the catalogue score in float32, computed once for all tests."""

from __future__ import annotations

import functools
from functools import cache
from pathlib import Path

import pytest
from onnxpress.models.tasks import reading, similarity
from onnxpress.optimizer.analysis.evaluate import TaskResult, evaluate


def short_lee(model: str | Path, most_tokens: int = 64) -> float:
    """The correlation with people on the beginnings of the Lee documents."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "Embedder", functools.partial(similarity.Embedder, most_tokens=most_tokens))
        return evaluate(model, "lee").value


@cache
def float_short_lee(most_tokens: int = 64) -> float:
    """That of minilm in float."""
    return short_lee("minilm", most_tokens)


def float_score(name: str, task: str | None = None) -> TaskResult:
    """Of a model on a task, by default its own; of as many lines as are read now."""
    return _score(name, task, reading._LINES)


@cache
def _score(name: str, task: str | None, _lines: int) -> TaskResult:
    return evaluate(name, task)
