"""The transform `hadamard`: a float model rotated before anything else is done to it, without data.

It is run beside the original on random inputs, and what computes otherwise is put back as it was.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from ..calibration.inputs import inputs_of
from ..calibration.segments import Segments
from ..errors import OnnxpressError
from ..evaluation.outputs import beyond_rounding
from ..graph.constants import mark_constants
from ..model_io.names import copy_of
from ..passes.base import Left
from ..passes.clean_up import put_in_place
from ..passes.rotate_channels import RotateChannels
from ..planning.report import size_text
from ..planning.result import ConversionResult
from ..runtime.feeds import Feeds, random_feeds, type_name
from ..settings.groups import ROTATION
from ..settings.recipe import Recipe

_SIZES: tuple[Mapping[str, int], ...] = (
    {"batch": 2, "sequence": 16, "past": 4},
    {"batch": 1, "sequence": 16, "past": 0},
    {},
)
"""Open sizes of random inputs, tried in turn until the model runs."""


@dataclasses.dataclass(frozen=True)
class Rotated:
    """What a rotation did.

    Attributes:
        rows: For a person, a label and a line each.
        details: The same as plain values.
        passes: What was left, and why.
        warnings: What the user should know.
    """

    rows: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    passes: Left = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)

    def tell(self, result: ConversionResult) -> ConversionResult:
        """A result with this."""
        return dataclasses.replace(
            result,
            rows=[*self.rows, *result.rows],
            details=result.details | self.details,
            passes=self.passes | result.passes,
            warnings=[*self.warnings, *result.warnings],
        )


def rotate(model: ir.Model, recipe: Recipe) -> Rotated:
    """Rotate a float model in place, where the recipe says so.

    Args:
        model: Which clean-up went over.
        recipe: Of any scheme.
    """
    if recipe.transform != ROTATION:
        return Rotated()
    step, original = RotateChannels(), copy_of(model)
    why = ""
    if step(model) and (why := _difference(original, model, step)):
        put_in_place(model, original)
    passes = {RotateChannels.__name__: dict(step.left)} if step.left else {}
    if why or not (step.rotated or step.attentions):
        first = {reason: where for where, reason in reversed(step.left.items())}
        told = "; ".join(f"{reason} (at {where})" for reason, where in first.items())
        said = why or told or "there are no residual streams, nor attentions"
        return Rotated(passes=passes, warnings=[f"transform {ROTATION} rotates nothing: {said}"])
    streams = [
        {"channels": stream.size, "hadamard": matrix.is_hadamard, "norms": len(stream.norms),
         "reads": len(stream.reads), "writes": len(stream.writes)}
        for stream, matrix in step.rotated
    ]  # fmt: skip
    return Rotated(
        [("rotated", "; ".join(_lines(step)))],
        {"rotated": {"streams": streams, "attentions": step.attentions, "copied": step.copied}},
        passes,
    )


def _lines(step: RotateChannels) -> list[str]:
    lines = []
    for stream, matrix in step.rotated:
        kind = "a Hadamard matrix" if matrix.is_hadamard else "an orthogonal matrix of chance"
        lines.append(f"residual stream of {stream.size} channels, {len(stream.reads)} products read it, by {kind}")
    if step.attentions:
        lines.append(f"values of {step.attentions} attentions")
    if step.copied:
        lines.append(f"{size_text(step.copied)} of float constants more, for weights that were one are two")
    return lines


def _difference(original: ir.Model, rotated: ir.Model, step: RotateChannels) -> str:
    """What a rotated model computes otherwise, or why that cannot be known; "" where it computes the same."""
    why = ""
    for sizes in _SIZES:
        try:
            feeds = _random(original, sizes)
            names, wanted = _outputs(original, feeds, step)
            return beyond_rounding(names, wanted, _outputs(rotated, feeds, step)[1]) or ""
        except OnnxpressError as error:
            why = why or f"what it computes cannot be compared: {error}"
    return why


def _random(model: ir.Model, sizes: Mapping[str, int]) -> Feeds:
    inputs = inputs_of(model)
    described = [
        types.SimpleNamespace(name=x.name, type=type_name(x.dtype), shape=x.shape) for x in inputs if not x.has_default
    ]
    return random_feeds(described, sizes, limits={x.name: x.limit for x in inputs if x.limit is not None})


def _outputs(model: ir.Model, feeds: Feeds, step: RotateChannels) -> tuple[list[str], list[Any]]:
    """Names of outputs and what they hold, by pieces of the model, whose weights are in memory one after the other."""
    mark_constants(model)
    with Segments(model, [feeds], outputs=True) as segments:
        nodes = {norm.node.name or "" for stream, _ in step.rotated for norm in stream.norms}
        for name in sorted(nodes, key=segments.position):
            segments.advance(name)
        names = segments.finish()
        return names, [segments.pair(name, 0)[0] for name in names]
