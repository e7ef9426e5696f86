"""TEQ: a scale for each input, learned by gradient descent.

From the better scales of AWQ and SmoothQuant on, the logarithm t_j of each scale goes down the slope of

    L = tr E H E',   E = Q(W diag(s)) diag(s)^-1 - W,   s = exp(t)

(Cheng et al. 2023, TEQ, arXiv 2310.10944, which descends from s = 1 along the outputs of the model by batches; here H
stands for all rows of the data). Rounding is taken as a constant offset in derivatives, and the scale D of a block of
codes as proportional to its range, whose ends are weights themselves. With G = E H, of a weight within the range

    dE_ij / dt_j = -E_ij,   dE_ij / dlog D = E_ij,

since its error is D times a constant, over s_j; and of one that is cut off, where Q is D times a constant,

    dE_ij / dt_j = -(E_ij + W_ij),   dE_ij / dlog D = E_ij + W_ij.

So each t_j rises by what its weights lose, and falls by what their blocks would lose where they are an end of a range.
Steps are those of Adam (Kingma & Ba 2014, algorithm 1), their length going down to 0. Each looks at some output
channels, the next at others: from 256 of 9,728 channels alone, a scale for each of 896 inputs learns what these have by
chance. The best scales met are kept, as all channels judge them, so none are worse than the start. A step costs a
rounding of its n channels and 2 n K^2 flops.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..methods import Problem
from ..quantized_weight import Floats, QuantizedWeight
from .awq import awq_scales
from .smoothquant import smoothquant_scales
from .transform import Group, Transform, centred, cheapest, in_place, rounded

Doubles = npt.NDArray[np.float64]

STEPS = 200
_JUDGED = 25
"""Steps after which all channels judge."""
_LENGTH = 0.01
"""Of the first steps, in logarithms."""
_MEAN, _SQUARE, _TINY = 0.9, 0.999, 1e-30
"""Adam's beta 1 and 2, and epsilon, for slopes of any size."""


def teq_scales(group: Group, steps: int = STEPS) -> Floats:
    """The scales of least cost that are met.

    Args:
        group: Weights that read the same inputs.
        steps: To go; 200, and no more than 1,000 make sense.

    Returns:
        float32 [K], positive, of geometric mean 1; ones, or not worse than the better of `awq_scales` and
        `smoothquant_scales`.
    """
    start = cheapest(group, [awq_scales(group), smoothquant_scales(group)])
    met = [np.ones_like(start), start]
    logarithms = np.log(start.astype(np.float64))
    mean, square = np.zeros_like(logarithms), np.zeros_like(logarithms)
    for step in range(steps):
        part, scales = group.part(step), centred(logarithms)
        down = np.sum([slope(problem, scales)[1] for problem in part.problems], 0)
        mean = _MEAN * mean + (1 - _MEAN) * down
        square = _SQUARE * square + (1 - _SQUARE) * np.square(down)
        far = mean / (1 - _MEAN ** (step + 1)) / (np.sqrt(square / (1 - _SQUARE ** (step + 1))) + _TINY)
        logarithms -= _LENGTH * (1 - step / steps) * far
        if (step + 1) % _JUDGED == 0 or step + 1 == steps:
            met.append(centred(logarithms))
    return min(met, key=group.cost)


def slope(problem: Problem, scales: Floats) -> tuple[float, Doubles]:
    """What rounding a weight costs with scales [K], and the derivative by each one's logarithm, [K]."""
    found = rounded(problem, scales)
    numbers = in_place(problem, found, scales)
    change = numbers - problem.rows
    pull = change @ problem.moments.second[0]
    cost = float(np.einsum("nk,nk->", change, pull, dtype=np.float64))
    pull *= np.where(_within(problem, found, scales), change, numbers)
    return cost, 2 * (_of_ranges(problem, scales, pull) - pull.sum(0, dtype=np.float64))


def _within(problem: Problem, found: QuantizedWeight, scales: Floats) -> npt.NDArray[np.bool_]:
    """Which weights [N, K] are not cut off."""
    form, K = problem.scheme.number_format, problem.rows.shape[1]
    units, zeros = found.scales, np.zeros_like(found.scales)
    if problem.scheme.integer:
        zeros = form.decode(found.zero_points)
    block = problem.scheme.codes_per_block(K)
    inverse = np.divide(1, units, out=np.zeros_like(units), where=units != 0)
    numbers = problem.rows * scales
    numbers *= np.repeat(inverse, block, axis=1)[:, :K]
    numbers += np.repeat(zeros, block, axis=1)[:, :K]
    ends = np.array([form.min, form.max], np.float32)
    low, high = ends + np.array([-0.5, 0.5], np.float32) * form.step(ends)
    within: npt.NDArray[np.bool_] = (numbers >= low) & (numbers <= high)
    return within


def _of_ranges(problem: Problem, scales: Floats, pull: Floats) -> Doubles:
    """The part of the slope that comes from the scales of blocks: what a block's errors pull, where its ends are."""
    scheme, (N, K) = problem.scheme, problem.rows.shape
    blocks, block = scheme.blocks(K), scheme.codes_per_block(K)
    padding = [(0, 0), (0, blocks * block - K)]
    weights = np.pad(problem.rows * scales, padding).reshape(N, blocks, block)
    whole = np.pad(pull, padding).reshape(N, blocks, block).sum(-1, dtype=np.float64)
    found = np.zeros((blocks, block))
    if scheme.symmetric or not scheme.integer:
        _add_at(found, np.abs(weights).argmax(-1), whole)
    else:
        low, high = np.minimum(weights.min(-1), 0), np.maximum(weights.max(-1), 0)
        span = np.where(high > low, high - low, 1)
        _add_at(found, weights.argmax(-1), whole * (high / span))
        _add_at(found, weights.argmin(-1), whole * (-low / span))
    return found.reshape(-1)[:K]


def _add_at(found: Doubles, where: npt.NDArray[np.intp], values: Doubles) -> None:
    """Add values [N, blocks] to the positions that they have within the blocks of [blocks, block]."""
    np.add.at(found, (np.broadcast_to(np.arange(len(found)), where.shape), where), values)


TEQ = Transform("teq", teq_scales)
"""A scale for each input, learned."""
