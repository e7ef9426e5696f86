"""Dynamic programming over widths against trying them all."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnxpress.optimizer.quantization.allocation import allocate


def best(costs, damages, budget):
    """The least damage of all choices within the budget."""
    choices = itertools.product(*(range(len(each)) for each in costs))
    within = [
        sum(each[index] for each, index in zip(damages, choice, strict=True))
        for choice in choices
        if sum(each[index] for each, index in zip(costs, choice, strict=True)) <= budget
    ]
    return min(within)


def totals(costs, damages, chosen):
    return [sum(each[index] for each, index in zip(values, chosen, strict=True)) for values in (costs, damages)]


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_better_than_what_is_chosen(seed):
    """Of whole numbers; candidates in no order, some of them of no use."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 5, 6)
    costs = [rng.integers(0, 40, count).tolist() for count in counts]
    damages = [rng.random(count).tolist() for count in counts]
    least, most = (sum(map(choose, costs)) for choose in (min, max))
    for budget in (least, (least + most) // 2, most, most + 100):
        cost, damage = totals(costs, damages, allocate(costs, damages, budget))
        assert cost <= budget
        assert damage == pytest.approx(best(costs, damages, budget), rel=1e-12)


def test_costs_that_are_no_whole_numbers():
    """Rounded up, so that the budget holds; by so little that the damage is that of a slightly smaller budget."""
    rng = np.random.default_rng(1)
    costs = [(1e6 * rng.random(4)).tolist() for _ in range(7)]
    damages = [rng.random(4).tolist() for _ in range(7)]
    least, most = (sum(map(choose, costs)) for choose in (min, max))
    for share in (0.1, 0.5, 0.9):
        budget = least + share * (most - least)
        cost, damage = totals(costs, damages, allocate(costs, damages, budget))
        assert cost <= budget
        assert damage <= best(costs, damages, least + (budget - least) * (1 - 7 / 32768))


def test_one_candidate_each():
    assert allocate([[3.0], [4.0]], [[1.0], [1.0]], 7.0) == [0, 0]


def test_equal_costs():
    assert allocate([[3, 3, 3]], [[2, 1, 3]], 3) == [1]


def test_no_weights():
    assert allocate([], [], 1) == []


def test_too_little():
    with pytest.raises(ValueError, match="cost more than the budget"):
        allocate([[2, 3]], [[1, 0]], 1.5)
