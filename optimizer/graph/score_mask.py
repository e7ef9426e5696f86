"""What is added to the scores of an attention with a past: which keys a query sees, and what else is added.

The mask is tried for several sizes and paddings. It has to leave out every key behind its query, for the operator that
takes over does so by itself; whatever else the mask says is kept, number by number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from .constants import scalar
from .matching import is_standard
from .trial import Array, Trial, UnknownError

LOWEST = float(np.finfo(np.float32).min)
_NEVER = -9999.0
"""What is added to scores at most where a key is not to count: its weight is 0 beside any other."""


@dataclasses.dataclass(frozen=True)
class ScoreMask:
    """What is added to scores.

    Attributes:
        root: [batch or 1, heads or 1, queries, keys], as the graph has it: booleans, or numbers that are added.
        kept: What a key that counts is added where the root is of booleans.
        fill: What the others are.
        counts: Whether true means that a key counts.
    """

    root: ir.Value
    kept: float = 0.0
    fill: float = LOWEST
    counts: bool = True

    @property
    def is_boolean(self) -> bool:
        """Whether the root says which keys count."""
        return self.root.dtype == ir.DataType.BOOL

    def added(self, root: Array) -> Array:
        """What is added, from what the root is."""
        if not self.is_boolean:
            return root
        added: Array = np.where(root == self.counts, np.float32(self.kept), np.float32(self.fill))
        return added


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes, and values of a model's inputs for them."""

    trial: Trial
    batch: int
    queries: int
    past: int

    @property
    def keys(self) -> int:
        """How many there are with the new ones."""
        return self.past + self.queries


def added_mask(value: ir.Value, cases: Sequence[Case], heads: int) -> ScoreMask:
    """The mask that is added to scores as this value; raises UnknownError where it does not leave out later keys."""
    return _checked(stripped(ScoreMask(value), cases), cases, heads)


def chosen_mask(condition: ir.Value, fill: float, counts: bool, cases: Sequence[Case], heads: int) -> ScoreMask:
    """The mask by which Where puts a number in the place of scores; raises UnknownError likewise.

    Args:
        condition: What it goes by.
        fill: The number.
        counts: Whether scores stay where the condition is true.
        cases: Tries.
        heads: How many heads there are.
    """
    return _checked(stripped(ScoreMask(condition, 0.0, fill, counts), cases), cases, heads)


def _checked(mask: ScoreMask, cases: Sequence[Case], heads: int) -> ScoreMask:
    for case in cases:
        added = mask.added(case.trial.array(mask.root))
        sizes = [(1, case.batch), (1, heads), (case.queries,), (case.keys,)]
        if added.ndim != len(sizes) or any(n not in known for n, known in zip(added.shape, sizes, strict=True)):
            raise UnknownError("what is added to the scores is no [batch, heads, queries, keys]")
        later = np.arange(case.keys)[None] > case.past + np.arange(case.queries)[:, None]
        if np.isnan(added).any() or (added[..., later] > _NEVER).any():
            raise UnknownError("queries see keys behind them")
    return mask


def stripped(mask: ScoreMask, cases: Sequence[Case]) -> ScoreMask:
    """The mask without what each layer does to it by itself."""
    found = mask
    while (node := found.root.producer()) is not None and node.inputs and (first := node.inputs[0]) is not None:
        if is_standard(node, "Identity") or (is_standard(node, "Slice") and _are_same(found.root, first, cases)):
            found = dataclasses.replace(found, root=first)
        elif is_standard(node, "Where") and (numbers := _numbers(node)) is not None and not found.is_boolean:
            found = ScoreMask(first, *numbers)
        elif is_standard(node, "Not") and found.is_boolean:
            found = dataclasses.replace(found, root=first, counts=not found.counts)
        else:
            break
    return found


def _numbers(node: ir.Node) -> tuple[float, float, bool] | None:
    """Of a Where between two numbers: that of keys that count, that of others, and whether the first is chosen."""
    yes, no = (scalar(each) for each in node.inputs[1:3])
    if yes is None or no is None:
        return None
    return (yes, no, True) if yes >= no else (no, yes, False)


def _are_same(cut: ir.Value, whole: ir.Value, cases: Sequence[Case]) -> bool:
    """Whether a Slice of what has a column a key takes all of it: scores have as many, so that there are no fewer."""
    node = cut.producer()
    assert node is not None
    try:
        axes = [int(axis) for axis in cases[0].trial.array(node.inputs[3])] if node.inputs[3] is not None else []
        starts = [int(begin) for begin in cases[0].trial.array(node.inputs[1])] if node.inputs[1] is not None else []
        shapes = [case.trial.array(whole).shape for case in cases]
    except (IndexError, UnknownError):
        return False
    rank = len(shapes[0])
    return (
        [axis % rank for axis in axes] == [rank - 1] and starts == [0]
        and (len(node.inputs) < 5 or scalar(node.inputs[4]) == 1)
        and all(shape[-1] == case.keys for shape, case in zip(shapes, cases, strict=True))
    )  # fmt: skip
