"""What a way of converting a model gives back to the pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from .plan import Decision
from .report import Accuracy, Attempt, WeightReport

Progress = Callable[[str, int, int], None]
"""Called with the stage, what is done of it, and the whole."""


@dataclasses.dataclass(frozen=True)
class ConversionResult:
    """A rewritten model's story.

    Attributes:
        decisions: One for each node that could be taken.
        weights: The rounded weights; called when the model is written, because some are rounded only then.
        gain: By how much the scale search lowered what it minimises, over all weights, in dB; called likewise.
        warnings: What the user should know.
        details: Other findings by name, plain values for JSON.
        rows: The same for a person: a label and a line each.
        settled: Settings that the recipe left open and the conversion chose, for whoever repeats it.
        passes: What passes over floats left, and why, by the pass and the node's name.
        accuracy: What was measured of the model, where a metric was.
        trail: What was tried on the way, in order.
    """

    decisions: list[Decision]
    weights: Callable[[], tuple[WeightReport, ...]]
    gain: Callable[[], float] = lambda: 0.0
    warnings: list[str] = dataclasses.field(default_factory=list)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    settled: dict[str, Any] = dataclasses.field(default_factory=dict)
    passes: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    accuracy: Accuracy | None = None
    trail: list[Attempt] = dataclasses.field(default_factory=list)
