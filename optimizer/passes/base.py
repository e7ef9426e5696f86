"""What all rewrites of graphs have in common: onnx-ir's contract of passes, and reasons for what was left."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Iterable

import onnx_ir as ir


@dataclasses.dataclass
class RewriteResult(ir.passes.PassResult):
    """What a pass did; true where it changed something.

    Attributes:
        left: Why nodes that it looks for stay as they were, by the node's name.
    """

    left: dict[str, str] = dataclasses.field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether anything changed."""
        return self.modified


class GraphPass(ir.passes.InPlacePass):
    """A rewrite of a model in place."""

    @functools.cached_property
    def left(self) -> dict[str, str]:
        """As in `RewriteResult`, of the last run."""
        return {}

    def __call__(self, model_or_result: ir.Model | ir.passes.PassResult, /) -> RewriteResult:
        """Rewrite; what it did."""
        result = super().__call__(model_or_result)
        assert isinstance(result, RewriteResult)
        return result

    def call(self, model: ir.Model) -> RewriteResult:
        """For onnx-ir."""
        self.left = {}
        return RewriteResult(model, self.rewrite(model), self.left)

    @abc.abstractmethod
    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite the model, and note in `left` what stays; whether anything changed."""


Left = dict[str, dict[str, str]]
"""What passes left, and why, by the pass and the node's name."""


def run_all(model: ir.Model, passes: Iterable[GraphPass]) -> Left:
    """Run passes in order; what each left, by its name."""
    return {type(each).__name__: left for each in passes if (left := each(model).left)}
