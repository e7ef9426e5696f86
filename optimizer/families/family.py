"""What a family of schemes is to a conversion."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import onnx_ir as ir

from ..calibration import Data, Statistics
from ..planning.plan import Decision
from ..planning.result import ConversionResult, Progress
from ..runtime.executor import PLAIN_MEANS, Means
from ..settings.recipe import Recipe

OpenData = Callable[[], Data | Statistics]
"""Opens what a calibration learns from; raises OnnxpressError."""


class Convert(Protocol):
    """How a family converts a model."""

    def __call__(
        self,
        model: ir.Model,
        recipe: Recipe,
        data: OpenData | None,
        progress: Progress,
        source: str,
        means: Means = PLAIN_MEANS,
        /,
    ) -> ConversionResult:
        """Convert a float model, which clean-up went over, in place; the weights are rounded when it is written.

        Args:
            model: The model.
            recipe: Of a scheme of the family.
            data: Opens what to calibrate with; None where there is nothing.
            progress: Told the stage, what is done of it, and the whole.
            source: What to call the model in an error.
            means: Who does pieces of it, and where it goes on when it was interrupted; of what learns from data, `Data`
                says where.

        Raises:
            OnnxpressError: The model cannot be converted as the recipe says.
        """


@dataclasses.dataclass(frozen=True)
class Family:
    """Schemes that are converted in one way; `demands` says what they ask of a request.

    Attributes:
        name: That of its `settings.families.FamilySettings`.
        decide: What becomes of the nodes of a float model, which clean-up went over, before any data is seen; the
            model is prepared for that. Raises OnnxpressError where it cannot be.
        convert: Converts a model.
        verb: What it does to a model, for people.
        is_about_nodes: Whether there is nothing to do where no node is taken.
    """

    name: str
    decide: Callable[[ir.Model, Recipe], list[Decision]]
    convert: Convert
    verb: str = "quantize"
    is_about_nodes: bool = True
