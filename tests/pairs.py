"""Parameters of tests by pairs of values: most faults need no more than two values to meet."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import pytest


def pairwise(parameters: Sequence[Sequence[object]]) -> list[tuple[object, ...]]:
    """Few rows of one value of each parameter, always the same, in which each two values of two parameters meet."""
    sizes = [range(len(values)) for values in parameters]
    missing = {
        ((i, a), (j, b)): None
        for i, j in itertools.combinations(range(len(sizes)), 2)
        for a, b in itertools.product(sizes[i], sizes[j])
    }  # in order, as a set is not
    rows = []
    while missing:
        row = dict(next(iter(missing)))
        for i in sorted(set(range(len(sizes))) - set(row)):
            row[i] = max(sizes[i], key=lambda a, i=i: sum(_pair((i, a), other) in missing for other in row.items()))
        for pair in itertools.combinations(sorted(row.items()), 2):
            missing.pop(pair, None)
        rows.append(tuple(values[row[i]] for i, values in enumerate(parameters)))
    return rows


def _pair(one: tuple[int, int], other: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    return (one, other) if one < other else (other, one)


def all_pairs(parameters: Mapping[str, Iterable[object]]) -> pytest.MarkDecorator:
    """Parametrizes a test: instead of all combinations, rows in which each two values meet.

    `parameters` maps a name to its values, or several with commas between them to tuples of values.
    """
    several = ["," in name for name in parameters]
    rows = [
        tuple(itertools.chain(*(value if many else (value,) for many, value in zip(several, row, strict=True))))
        for row in pairwise([list(values) for values in parameters.values()])
    ]
    return pytest.mark.parametrize(",".join(parameters), rows)
