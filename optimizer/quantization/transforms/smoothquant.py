"""SmoothQuant: the largest magnitudes of inputs move into the weights by some share.

    s_j = max|x_j|^a / max|w_j|^(1 - a)

(Xiao et al. 2022, arXiv 2211.10438, equation 4). It was made for activations that are rounded, too, see
`passes.smooth_matmul`; here they are not, and the share a is the one of least tr E H E'.
"""

from __future__ import annotations

import numpy as np

from ..quantized_weight import Floats
from .transform import Group, Transform, centred, cheapest

_SHARES = tuple(step / 10 for step in range(11))
_LEAST_SHARE = 1e-4
"""Of the largest range, below which ranges count the same: what is dead in the data is not in others."""


def smoothquant_scales(group: Group) -> Floats:
    """The scales of least cost.

    Args:
        group: Weights that read the same inputs.

    Returns:
        float32 [K], positive, of geometric mean 1.
    """
    inputs = _logarithms(group.largest)
    weights = _logarithms(np.max([np.abs(problem.rows).max(0) for problem in group.problems], 0))
    return cheapest(group, [centred(share * inputs - (1 - share) * weights) for share in _SHARES])


def _logarithms(ranges: Floats) -> Floats:
    least = _LEAST_SHARE * ranges.max()
    found: Floats = np.log(np.maximum(ranges, least)) if least > 0 else np.zeros_like(ranges)
    return found


SMOOTHQUANT = Transform("smoothquant", smoothquant_scales)
"""Ranges of inputs and weights, weighed against each other."""
