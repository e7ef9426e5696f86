"""AWQ: inputs that carry much get weights that are rounded more finely.

The scale of a block hardly grows by the few weights that are multiplied, so the error that their inputs meet shrinks.
One exponent is searched for all (Lin et al. 2023, arXiv 2306.00978, equations 4 and 5):

    s = d^a,   a from 0 to 1, of least tr E H E',

with d the root mean square of each input, over its geometric mean. The paper takes mean magnitudes, and measures the
outputs.
"""

from __future__ import annotations

import numpy as np

from ..quantized_weight import Floats
from .transform import Group, Transform, centred, cheapest

_EXPONENTS = 20
"""Steps from 0 to 1."""
_LEAST_SHARE = 1e-4
"""Of the mean of mean squares, below which inputs count the same: those that are dead in the data are not in others."""


def awq_scales(group: Group) -> Floats:
    """The scales of least cost.

    Args:
        group: Weights that read the same inputs.

    Returns:
        float32 [K], positive, of geometric mean 1.
    """
    squares = group.problems[0].moments.diagonal[0].astype(np.float64)
    squares = np.maximum(squares, _LEAST_SHARE * squares.mean())
    logarithms = np.log(squares) / 2 if squares.min() > 0 else np.zeros_like(squares)
    exponents = np.linspace(0, 1, _EXPONENTS + 1)[1:]
    return cheapest(group, [centred(exponent * logarithms) for exponent in exponents])


AWQ = Transform("awq", awq_scales)
"""One exponent of the inputs' sizes, searched."""
