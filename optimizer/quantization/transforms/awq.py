"""AWQ: inputs that carry much get weights that are rounded more finely.

A product is the same with weights multiplied and inputs divided by a scale per input, W x = (W diag(s)) (x / s), and
what stands before the product can divide. A block's scale hardly grows by the few weights that are multiplied, so the
error that their inputs meet shrinks. One exponent is searched for all (Lin et al. 2023, arXiv 2306.00978, equations 4
and 5):

    s = d^a,   a of least tr E H E',   E = Q(W diag(s)) diag(s)^-1 - W,

with d the root mean square of each input, over its geometric mean. (The paper takes mean magnitudes, and measures the
outputs.) Weights that read the same inputs have one s, of least sum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..input_moments import InputMoments
from ..methods import Method, Problem
from ..quantized_weight import Floats

_EXPONENTS = 20
"""Steps from 0 to 1."""
_LEAST_SHARE = 1e-4
"""Of the mean of mean squares, below which inputs count the same: those that are dead in the data are not in others."""


def awq_scales(problems: Sequence[Problem], method: Method) -> Floats:
    """The scales of least cost, for weights that read the same inputs.

    Args:
        problems: One for each weight, with the same moments, of one group.
        method: Rounds the scaled weights; `search` finds ranges under the inputs that they then meet.

    Returns:
        float32 [K], positive; ones where no others cost less.

    Raises:
        ValueError: There are several groups of channels, which have inputs of their own.
    """
    moments = problems[0].moments
    if len(moments.second) > 1:
        raise ValueError("inputs of several groups of channels")
    squares = moments.diagonal[0].astype(np.float64)
    squares = np.maximum(squares, _LEAST_SHARE * squares.mean())
    logarithms = np.log(squares) / 2 if squares.min() > 0 else np.zeros_like(squares)
    logarithms -= logarithms.mean()
    costs = {}
    for exponent in np.linspace(0, 1, _EXPONENTS + 1):
        scales = np.exp(exponent * logarithms).astype(np.float32)
        costs[float(exponent)] = sum(_cost(scaled(problem, scales), method) for problem in problems)
    best = min(costs, key=costs.__getitem__)  # the first of equals
    found: Floats = np.exp(best * logarithms).astype(np.float32)
    return found


def scaled(problem: Problem, scales: Floats) -> Problem:
    """The same product with weights multiplied and inputs divided by scales [K], on both paths."""
    return dataclasses.replace(
        problem,
        rows=problem.rows * scales,
        moments=_divided(problem.moments, scales),
        apart=_divided(problem.apart, scales),
    )


def _divided(moments: InputMoments, scales: Floats) -> InputMoments:
    inverse: Floats = np.reciprocal(scales)
    both: Floats = inverse[:, None] * inverse
    return dataclasses.replace(
        moments,
        second=moments.second * both,
        cross=None if moments.cross is None else moments.cross * both,
        float_second=None if moments.float_second is None else moments.float_second * both,
    )


def _cost(problem: Problem, method: Method) -> float:
    """Of rounded weights; the same before and behind the division."""
    found = method.round(problem).decoded(problem.scheme, problem.rows.shape[1])
    return problem.moments.cost(found, problem.rows)
