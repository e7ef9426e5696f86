"""Lengths that cost little and lose little, found by evolution (Kim and Cho, 2021, arXiv:2010.07003, section 3.2).

It begins with single steps behind each layer, and with like steps behind all. Then the best so far, of which no other
is both cheaper and better, have children: one of a parent with some lengths drawn anew between their neighbours, or the
mean of two.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable, Sequence

GRID = 20
"""Lengths are these parts of all tokens."""
_STEPS = (0.75, 0.5, 0.25)
_RATIOS = (0.9, 0.8, 0.7)
_REDRAWN = 0.4
"""How likely a length is drawn anew."""
_BEYOND = 2.0
"""Parents lose up to so many times what may be lost."""

Lengths = tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Found:
    """One that was judged.

    Attributes:
        lengths: What each layer but the last hands on, as shares.
        cost: Of all layers, as a share of what they cost with all tokens.
        loss: Of the metric.
    """

    lengths: Lengths
    cost: float
    loss: float


def evolve(
    judge: Callable[[Sequence[Lengths]], Iterable[float]],
    cost: Callable[[Lengths], float],
    layers: int,
    most: float,
    *,
    generations: int = 6,
    children: int = 8,
    seed: int = 0,
    done: Callable[[int, int], None] = lambda _done, _whole: None,
) -> list[Found]:
    """All lengths that were judged, each once, those that hand on everything first.

    Args:
        judge: The loss of each of some, none of which depends on another; NaN counts as a total one.
        cost: Their cost.
        layers: Of the model, two at least.
        most: What may be lost: lengths that lose far more have no children.
        generations: After the first.
        children: A generation.
        seed: Of what is drawn.
        done: Told how many were judged, and how many there will be at most.
    """
    draw = random.Random(seed)
    found: dict[Lengths, Found] = {}
    first = list(_first(layers))
    whole = len(first) + generations * children

    def add(some: Sequence[Lengths]) -> None:
        for each, loss in zip(some, judge(some), strict=True):
            found[each] = Found(each, cost(each), loss if loss == loss else float("inf"))
            done(len(found), whole)

    add(first)
    for _ in range(generations):
        parents = [each for each in front_of(found.values()) if each.loss <= _BEYOND * most] or [found[first[0]]]
        add(list(_children([each.lengths for each in parents], children, found, draw)))
    done(whole, whole)
    return list(found.values())


def front_of(found: Iterable[Found]) -> list[Found]:
    """Those of which no other is as cheap and loses less, or as good and cheaper; the dearest first."""
    best: list[Found] = []
    for each in sorted(found, key=lambda each: (each.cost, each.loss, each.lengths)):
        if not best or each.loss < best[-1].loss:
            best.append(each)
    return best[::-1]


def within(found: Iterable[Found], most: float) -> list[Found]:
    """Those that lose no more, the cheapest first."""
    return sorted((each for each in found if each.loss <= most), key=lambda each: (each.cost, each.loss, each.lengths))


def _first(layers: int) -> Iterable[Lengths]:
    """Everything, single steps, and equal ones."""
    made: dict[Lengths, None] = {(1.0,) * (layers - 1): None}
    for ratio in _RATIOS:
        made[_on_grid([ratio**power for power in range(1, layers)])] = None
    for after in range(layers - 1):
        for step in _STEPS:
            made[(1.0,) * after + (step,) * (layers - 1 - after)] = None
    return made


def _children(
    parents: Sequence[Lengths], count: int, known: Iterable[Lengths], draw: random.Random
) -> Iterable[Lengths]:  # fmt: skip
    made: dict[Lengths, None] = {}
    seen = set(known)
    for _ in range(20 * count):  # few lengths may be left that nobody knows
        if len(made) == count:
            break
        if len(parents) > 1 and draw.random() < 0.5:
            pair = draw.sample(parents, 2)
            child = _on_grid([sum(both) / 2 for both in zip(*pair, strict=True)])
        else:
            child = _mutated(draw.choice(parents), draw)
        if child not in seen:
            made[child] = None
    return made


def _mutated(lengths: Lengths, draw: random.Random) -> Lengths:
    """With some drawn anew, each between what is before it by then and what is behind it."""
    parts = [round(length * GRID) for length in lengths]
    for index in range(len(parts)):
        if draw.random() < _REDRAWN:
            high = parts[index - 1] if index else GRID
            low = parts[index + 1] if index + 1 < len(parts) else 1
            parts[index] = draw.randint(low, high)
    return tuple(part / GRID for part in parts)


def _on_grid(lengths: Sequence[float]) -> Lengths:
    return tuple(max(1, round(length * GRID)) / GRID for length in lengths)
