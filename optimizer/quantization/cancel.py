"""Errors of rounding that cancel in the sum of an output channel of a convolution.

What a convolution reads comes mostly from a Relu, or the like of it: numbers of one sign, whose common part meets the
sum of the errors. For a normal number cut off at zero the squared mean is 1 / (pi - 1) of the variance, so without data
the expected squared error of an output is, but for a factor,

    sum_k e_k^2 + (sum_k e_k)^2 / (pi - 1),   e = q - x.

Rounding to nearest minimises the first sum alone. Here the numbers that lie nearest to the middle of two go the other
way, which costs the first sum next to nothing, until the whole is least: of each channel those of least cost for what
they move, as many as pay (Guo et al. 2022, SQuant, sections 3.2 and 3.3, who bound the second sum in place of weighing
both).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_SHARED = 1 / (math.pi - 1)
"""Squared mean over variance of a normal number that is cut off at zero."""


def cancel(rounded: Floats, x: Floats, scales: Floats, values: Floats) -> Floats:
    """Numbers whose errors cancel.

    Args:
        rounded: [N, K], the nearest of `values` to x / scales.
        x: [N, K], the weights of N output channels.
        scales: [N, K], positive.
        values: All that a number can be, ascending, finite.

    Returns:
        [N, K]: those of `rounded`, or neighbours of them.
    """
    place = np.searchsorted(values, rounded)
    error = rounded.astype(np.float64) * scales - x
    total = error.sum(axis=1, keepdims=True)
    sign = np.sign(total)
    beside = np.clip(place - sign.astype(np.intp), 0, values.size - 1)
    move = np.abs(values[beside] - values[place]).astype(np.float64) * scales
    price = move - 2 * sign * error  # of squares, for what the sum moves
    order = np.argsort(np.where(move > 0, price, np.inf), axis=1, kind="stable")
    move, price = np.take_along_axis(move, order, 1), np.take_along_axis(price, order, 1)
    moved = np.cumsum(move, axis=1)
    cost = np.cumsum(move * price, axis=1) + _SHARED * moved * (moved - 2 * np.abs(total))
    count = np.where(cost.min(axis=1) < 0, cost.argmin(axis=1) + 1, 0)
    chosen = np.empty(x.shape, bool)
    np.put_along_axis(chosen, order, np.arange(x.shape[1]) < count[:, None], 1)
    return np.where(chosen, values[beside], rounded)
