"""Steps of preparation on trial: one that makes the outputs on the calibration data worse is taken back.

Each step is meant to help, and may harm one model or another: scales that move between channels, biases and weights
that make up for what was rounded before them. So the model is rounded without any of them first, then with one more at
a time, each beside the best so far.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from ...errors import OnnxpressError
from ...evaluation.output_noise import OutputNoise
from ...planning.report import Attempt
from ...planning.result import Progress
from ...settings.recipe import Recipe
from .builder import Builder, Calibrated
from .loadable import refused_by_runtime

_WORSE = 1.1
"""Noise beyond this multiple of what it was without a step speaks against the step; less is chance."""
_OFF = {"correct_bias": False, "method": "rtn"}
"""Settings of the steps that are tried, and their values without."""

_SAID = {"method": "gptq", "restore_moments": "restored moments", "correct_bias": "corrected biases"}
"""What steps are called in a trail, where the name of the setting does not tell."""
NOISE = "noise of the outputs, % of their signal"
"""What models are judged by: less is better."""

Make = Callable[[Calibrated, Recipe], Builder[Any]]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """On a step that makes the outputs worse.

    Attributes:
        step: The setting that asks for it.
        noise: Of the outputs with it, as a share of their signal.
        without: The same without it.
        kept: Because whoever converts asked for it.
    """

    step: str
    noise: float
    without: float
    kept: bool

    def line(self) -> str:
        """For a person."""
        what = "kept, as asked" if self.kept else "taken back"
        return f"{self.step} {what}: outputs {_percent(self.noise)} off with it, {_percent(self.without)} without"


class Trials:
    """What speaks against steps, measured on the data that a builder holds.

    Attributes:
        verdicts: On the steps that made the outputs worse.
        trail: All models that were measured, in order.
        refused: What ONNX Runtime runs none of the models with, and why; it was asked once.
    """

    def __init__(self, make: Make, progress: Progress) -> None:
        self.verdicts: list[Verdict] = []
        self.trail: list[Attempt] = []
        self._make, self._progress = make, progress
        self.refused: dict[str, str] = {}
        self._noise: OutputNoise | None = None
        self._measured: tuple[Any, float] | None = None  # the last model, or the best: it is asked for again
        self._best: Builder[Any] | None = None  # whose model ran

    def settle(self, stages: Sequence[Calibrated], recipe: Recipe) -> Builder[Any]:
        """The builder of the best model that the steps make.

        Args:
            stages: The float model, and what each step that moves scales makes of the one before.
            recipe: What is asked for.

        Raises:
            OnnxpressError: ONNX Runtime cannot load or run a model.
        """
        steps = [step for step, off in _OFF.items() if recipe.reads(step) and getattr(recipe, step) != off]
        whole = len(stages) + len(steps)
        off: dict[str, Any] = {step: _OFF[step] for step in steps}
        plain = dataclasses.replace(recipe, **off)
        best = self._make(stages[0], plain)
        if not best.feeds or whole == 1:
            return best if plain == recipe else best.with_recipe(recipe)
        self._progress("try steps", 0, whole)
        began = time.perf_counter()
        least = self.noise(best)
        self._note("none of the steps", least, began, accepted=True)
        tried = [*((stage.step, stage) for stage in stages[1:]), *((step, None) for step in steps)]
        for count, (name, stage) in enumerate(tried, 1):
            self._progress("try steps", count, whole)
            began = time.perf_counter()
            if stage is not None:
                builder = self._make(stage, best.recipe)
            else:
                builder = best.with_recipe(dataclasses.replace(best.recipe, **{name: getattr(recipe, name)}))
            noise = self.noise(builder)
            if self.keeps(name, noise, least, began, asked=_asked(recipe, name)):
                best, least = builder, noise
        self._progress("try steps", whole, whole)
        self._best, self._measured = best, (best.build(self.refused).model, least)
        return best

    def noise(self, builder: Builder[Any]) -> float:
        """Of a builder's model without further steps."""
        is_first = self._noise is None
        try:
            return self.noise_of(builder, builder.build(self.refused).model)
        except OnnxpressError:
            if not is_first:
                raise
        self.refused = refused_by_runtime(builder, {})
        return self.noise_of(builder, builder.build(self.refused).model)

    def refused_of(self, builder: Builder[Any]) -> dict[str, str]:
        """The nodes to keep in float so that ONNX Runtime runs a builder's model, and why.

        Raises:
            OnnxpressError: It refuses the float model as well.
        """
        return dict(self.refused) if builder is self._best else refused_by_runtime(builder, self.refused)

    def noise_of(self, builder: Builder[Any], model: Any) -> float:
        """Of a model, beside the float model of its builder."""
        self._noise = self._noise or OutputNoise(builder.model, builder.feeds)
        if self._measured is None or self._measured[0] is not model:
            self._measured = model, self._noise(model)
        return self._measured[1]

    def keeps(self, step: str, noise: float, without: float, began: float, *, asked: bool) -> bool:
        """Whether a step stays, which was made and measured since `began`; it is noted, and again where it harms."""
        harms = not noise <= _WORSE * without
        if harms:
            self.verdicts.append(Verdict(step, noise, without, asked))
        self._note(f"with {_SAID.get(step, step)}", noise, began, accepted=asked or not harms)
        return asked or not harms

    def _note(self, recipe: str, noise: float, began: float, *, accepted: bool) -> None:
        seconds = time.perf_counter() - began
        self.trail.append(Attempt(recipe, NOISE, 100 * noise, accepted, seconds=seconds))


def _asked(recipe: Recipe, step: str) -> bool:
    """Whether somebody asked for a step, that is not done anyway."""
    value = getattr(recipe, step)
    return value not in (None, False) and value != getattr(Recipe(), step)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
