"""Evolution of lengths, on losses and costs that are known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from onnxpress.optimizer.planning.length_evolution import GRID, Found, evolve, front_of, within

IMPORTANT = (8.0, 1.0, 4.0, 0.5)
"""What the loss grows by with what is missing behind each layer."""


def loss(lengths):
    return 0.01 * sum(weight * (1 - length) ** 2 for weight, length in zip(IMPORTANT, lengths, strict=True))


def cost(lengths):
    return (1 + sum(lengths)) / 5


def all_lengths(parts):
    """Every schedule of a coarser grid."""
    steps = [part / parts for part in range(1, parts + 1)]
    return [each for each in itertools.product(steps, repeat=4) if all(a >= b for a, b in itertools.pairwise(each))]


def test_comes_close_to_the_best():
    """Of thousands of schedules it judges a few, and finds one that two parts of one length more make the best."""
    judged = []
    found = evolve(lambda some: judged.extend(some) or map(loss, some), cost, 5, 0.02, generations=12, children=10)
    assert len(judged) == len(set(judged)) == len(found) <= 140
    best = within(found, 0.02)[0]
    optimum = min(cost(each) for each in all_lengths(10) if loss(each) <= 0.02)
    assert best.cost <= optimum + 2 / (5 * GRID) + 1e-9
    assert found[0].lengths == (1.0,) * 4
    for each in found:
        assert (each.cost, each.loss) == (cost(each.lengths), loss(each.lengths))
        assert all(0 < b <= a <= 1 for a, b in itertools.pairwise((1.0, *each.lengths)))
        assert all((GRID * length).is_integer() or math.isclose(GRID * length % 1, 0) for length in each.lengths)


def test_is_the_same_again_and_another_with_another_seed():
    runs = [
        [each.lengths for each in evolve(lambda some: map(loss, some), cost, 5, 0.02, seed=seed)] for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_what_cannot_be_judged_has_no_children():
    """NaN is a total loss; where everything is, what hands on all tokens is the parent."""
    found = evolve(lambda some: [math.nan] * len(some), cost, 3, 0.02, generations=2, children=3)
    assert all(each.loss == math.inf for each in found)
    assert not within(found, 1.0)


def test_two_layers_have_few_schedules():
    steps = []
    found = evolve(
        lambda some: [0.0] * len(some),
        lambda each: each[0],
        2,
        0.1,
        generations=9,
        children=9,
        done=lambda *s: steps.append(s),
    )
    assert len(found) <= GRID
    assert within(found, 0.1)[0].lengths == (1 / GRID,)
    assert steps[-1][0] == steps[-1][1]


def test_front():
    points = [(0.9, 0.1), (0.5, 0.3), (0.5, 0.2), (0.7, 0.2), (0.3, 0.9), (1.0, 0.1)]
    front = front_of([Found((x,), x, y) for x, y in points])
    assert [(each.cost, each.loss) for each in front] == [(0.9, 0.1), (0.5, 0.2), (0.3, 0.9)]
    rng = np.random.default_rng(0)
    many = [Found((x,), x, y) for x, y in rng.random((200, 2)).round(1).tolist()]
    naive = {
        (a.cost, a.loss)
        for a in many
        if not any(b.cost <= a.cost and b.loss <= a.loss and (b.cost, b.loss) != (a.cost, a.loss) for b in many)
    }
    assert {(each.cost, each.loss) for each in front_of(many)} == naive


@pytest.mark.parametrize(("most", "count"), [(0.05, 0), (0.1, 2), (0.2, 4), (1.0, 6)])
def test_within_a_bound(most, count):
    points = [(0.9, 0.1), (0.5, 0.3), (0.5, 0.2), (0.7, 0.2), (0.3, 0.9), (1.0, 0.1)]
    found = within([Found((x,), x, y) for x, y in points], most)
    assert len(found) == count
    assert [each.cost for each in found] == sorted(each.cost for each in found)
