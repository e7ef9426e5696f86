"""What is added to the scores of an attention with a past: which keys a query sees, and what else is added.

It is a sum, such as of a mask and of what distance costs (ALiBi: Press et al., 2022, arXiv:2108.12409). It is tried for
several sizes and paddings. It has to leave out every key behind its query, for the operator that takes over does so by
itself; whatever else it says is kept, number by number.
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
NEVER = -9999.0
"""What is added to scores at most where a key is not to count: its weight is 0 beside any other."""

_FLAT = 3
"""Axes of scores [batch * heads, queries, keys]."""


@dataclasses.dataclass(frozen=True)
class Term:
    """What is added to scores, or chosen in their place.

    Attributes:
        root: What broadcasts to the scores, as the graph has it: numbers, or booleans.
        factor: What its numbers are multiplied by.
        is_choice: Whether it is booleans, by which one of two numbers is added.
        kept: That for a key that counts.
        fill: That for any other.
        counts: Whether true means that a key counts.
        flat: Whether it is added where scores are [batch * heads, queries, keys], and has such a first axis itself.
    """

    root: ir.Value
    factor: float = 1.0
    is_choice: bool = False
    kept: float = 0.0
    fill: float = LOWEST
    counts: bool = True
    flat: bool = False

    def array(self, case: Case, heads: int) -> Array:
        """What the root is, of as many heads."""
        root = case.trial.array(self.root)
        return root.reshape(case.batch, heads, *root.shape[1:]) if self.flat else root

    def added(self, root: Array, before: Array) -> Array:
        """The sum with this term, from what the root is and the sum before."""
        if self.is_choice:
            made: Array = np.where(root == self.counts, before + np.float32(self.kept), np.float32(self.fill))
        else:
            made = before + root * np.float32(self.factor)
        return made


@dataclasses.dataclass(frozen=True)
class ScoreMask:
    """What is added to scores, [batch or 1, heads or 1, queries, keys].

    Attributes:
        terms: Of the sum, from the inside out: what is chosen takes the place of all before.
        root: Of a term that has a number for each query and key: layers that have the same are of the same sizes.
    """

    terms: tuple[Term, ...]
    root: ir.Value


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


def read_mask(terms: Sequence[Term], cases: Sequence[Case], heads: int) -> ScoreMask:
    """The mask that is the sum of these terms; raises UnknownError where it does not leave out later keys.

    Args:
        terms: From the inside out.
        cases: Tries.
        heads: How many heads there are.
    """
    read = tuple(_laid_out(stripped(term, cases), cases[0], heads) for term in terms)
    for case in cases:
        added: Array = np.zeros((), np.float32)
        for term in read:
            added = _sum(term, case, heads, added)
        sizes = [(1, case.batch), (1, heads), (case.queries,), (case.keys,)]
        if added.ndim != len(sizes) or any(n not in known for n, known in zip(added.shape, sizes, strict=True)):
            raise UnknownError("what is added to the scores is no [batch, heads, queries, keys]")
        later = np.arange(case.keys)[None] > case.past + np.arange(case.queries)[:, None]
        if np.isnan(added).any() or (added[..., later] > NEVER).any():
            raise UnknownError("queries see keys behind them")
    whole = (cases[0].queries, cases[0].keys)
    roots = [term.root for term in read if cases[0].trial.array(term.root).shape[-2:] == whole]
    if not roots:
        raise UnknownError("no mask has a number for each query and key")
    return ScoreMask(read, roots[-1])


def _sum(term: Term, case: Case, heads: int, before: Array) -> Array:
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return term.added(term.array(case, heads), before)
    except ValueError as error:
        raise UnknownError("what is added to the scores is no [batch, heads, queries, keys]") from error


def _laid_out(term: Term, case: Case, heads: int) -> Term:
    """The term, flat only where its own first axis is of heads."""
    shape = case.trial.array(term.root).shape
    return dataclasses.replace(term, flat=term.flat and len(shape) == _FLAT and shape[0] == case.batch * heads)


def stripped(term: Term, cases: Sequence[Case]) -> Term:
    """The term without what each layer does to it by itself."""
    found = term
    while (node := found.root.producer()) is not None and node.inputs and (first := node.inputs[0]) is not None:
        if is_standard(node, "Identity") or (is_standard(node, "Slice") and _are_same(found.root, first, cases)):
            found = dataclasses.replace(found, root=first)
        elif is_standard(node, "Where") and (numbers := _numbers(node)) is not None and not found.is_choice:
            yes, no, counts = numbers
            found = dataclasses.replace(
                found, root=first, factor=1.0, is_choice=True, kept=yes * found.factor, fill=no * found.factor,
                counts=counts,
            )  # fmt: skip
        elif is_standard(node, "Not") and found.is_choice:
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
