"""What a family of schemes is to a conversion."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Protocol

import onnx_ir as ir

from ..calibration import Data, Statistics
from ..planning.plan import Decision
from ..planning.result import ConversionResult, Progress
from ..settings.recipe import Recipe

OpenData = Callable[[], Data | Statistics]
"""Opens what a calibration learns from; raises OnnxpressError."""


class Need(enum.Enum):
    """What calibration data is to a recipe."""

    NONE = enum.auto()
    WELCOME = enum.auto()
    REQUIRED = enum.auto()


class Convert(Protocol):
    """How a family converts a model."""

    def __call__(
        self, model: ir.Model, recipe: Recipe, data: OpenData | None, progress: Progress, source: str, /
    ) -> ConversionResult:
        """Convert a float model, which clean-up went over, in place; the weights are rounded when it is written.

        Args:
            model: The model.
            recipe: Of a scheme of the family.
            data: Opens what to calibrate with; None where there is nothing.
            progress: Told the stage, what is done of it, and the whole.
            source: What to call the model in an error.

        Raises:
            OnnxpressError: The model cannot be converted as the recipe says.
        """


@dataclasses.dataclass(frozen=True)
class Family:
    """Schemes that are converted in one way.

    Attributes:
        name: That of its `settings.families.FamilySettings`.
        decide: What becomes of the nodes of a float model, which clean-up went over, before any data is seen; the
            model is prepared for that. Raises OnnxpressError where it cannot be.
        convert: Converts a model.
        need: What data is to a recipe, and whether somebody gave some; a model of the catalogue has its own.
        check: Refuses, by SettingError, SettingsError or UsageError, a recipe that cannot be met with the data there
            is: whether there is any, and whether that is statistics in place of data.
        takes_statistics: Whether statistics do in place of data.
        goes_on: Whether an interrupted conversion can go on, from `Calibration.checkpoint`.
        verb: What it does to a model, for people.
    """

    name: str
    decide: Callable[[ir.Model, Recipe], list[Decision]]
    convert: Convert
    need: Callable[[Recipe, bool], Need] = lambda _recipe, _given: Need.NONE
    check: Callable[[Recipe, bool, bool], None] = lambda _recipe, _is_there, _statistics: None
    takes_statistics: bool = True
    goes_on: bool = False
    verb: str = "quantize"
