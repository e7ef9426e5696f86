"""Which of some roundings each weight gets, so that all of them lose least within a budget.

That is the multiple-choice knapsack problem (Kellerer, Pferschy & Pisinger 2004, "Knapsack Problems", chapter 11): of
each weight one candidate, sum of costs at most the budget, sum of damages least. Dynamic programming over what a part
of the budget buys the weights so far solves it,

    best(i, u) = min over candidates c of weight i with cost_c <= u of  best(i - 1, u - cost_c) + damage_c.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_UNITS = 1 << 15
"""Parts of what the budget has beyond the cheapest candidates; costs are rounded up to whole parts."""


def allocate(costs: Sequence[Sequence[float]], damages: Sequence[Sequence[float]], budget: float) -> list[int]:
    """Choose one candidate of each weight.

    Args:
        costs: By weight and candidate, at least 0, in the unit of the budget.
        damages: Of the same shape.
        budget: The most that the chosen ones may cost together.

    Returns:
        The candidate of each weight. Within the rounding of costs, below 1/32768 of the budget a weight, no other
        choice loses less; where all costs and the budget are whole numbers up to 32768, none does.

    Raises:
        ValueError: The cheapest candidates cost more than the budget.
    """
    spare = budget - math.fsum(map(min, costs))
    if spare < 0:
        raise ValueError("the cheapest candidates cost more than the budget")
    extra = [np.asarray(each, np.float64) - min(each) for each in costs]
    most = math.fsum(float(each.max()) for each in extra)
    spare = min(spare, most)
    whole = spare == int(spare) <= _UNITS and all((each == np.floor(each)).all() for each in extra)
    unit = 1.0 if whole else spare / _UNITS
    if spare == 0:
        steps, units = [np.where(each > 0, 1, 0) for each in extra], 0
    else:
        steps, units = [np.ceil(each / unit).astype(np.int64) for each in extra], round(spare / unit)
    return _choose(steps, [np.asarray(each, np.float64) for each in damages], units)


def _choose(steps: Sequence[npt.NDArray[np.int64]], damages: Sequence[Floats], units: int) -> list[int]:
    best = np.zeros(units + 1)
    chosen: list[npt.NDArray[np.int16]] = []
    for taken, lost in zip(steps, damages, strict=True):
        found, choice = np.full(units + 1, np.inf), np.zeros(units + 1, np.int16)
        for index in range(len(taken)):
            step = int(taken[index])
            if step > units:
                continue
            total = best[: units + 1 - step] + lost[index]
            better = total < found[step:]
            found[step:][better] = total[better]
            choice[step:][better] = index
        best = found
        chosen.append(choice)
    left, result = units, []
    for taken, choice in zip(reversed(steps), reversed(chosen), strict=True):
        index = int(choice[left])
        result.append(index)
        left -= int(taken[index])
    return result[::-1]
