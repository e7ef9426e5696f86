from __future__ import annotations

import itertools

import pytest
from pairs import all_pairs, pairwise


@pytest.mark.parametrize("sizes", [(2, 2), (3, 1, 4), (5, 7, 3, 2), (2,) * 10, (4, 4, 4, 4)])
def test_each_two_values_meet(sizes):
    values = [[f"{i}{a}" for a in range(size)] for i, size in enumerate(sizes)]
    rows = pairwise(values)
    for i, j in itertools.combinations(range(len(sizes)), 2):
        assert {(row[i], row[j]) for row in rows} == set(itertools.product(values[i], values[j]))
    largest = sorted(sizes)[-2:]
    assert len(rows) <= 2 * largest[0] * largest[1] + len(sizes)
    assert rows == pairwise(values)


def test_several_names_share_a_value():
    mark = all_pairs({"a": [1, 2], "b,c": [(3, 4), (5, 6)]}).mark
    assert mark.args == ("a,b,c", [(1, 3, 4), (1, 5, 6), (2, 3, 4), (2, 5, 6)])
