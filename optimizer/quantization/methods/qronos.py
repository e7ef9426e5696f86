"""Qronos: rounding towards what the float model's product gives, of what the rounded layers before hand on.

The inputs of a product are no longer x but x~. Outputs w of least |w x~ - w0 x|^2 over the data are

    w = w0 + w0 (C' - H) H^-1,    H = X~'X~ / n,  C = X~'X / n,

and these are rounded by GPTQ with H (Zhang et al. 2025, arXiv 2505.11695, whose first step corrects, and whose others
are GPTQ's in Cholesky form). Few giant activations, such as those of the first tokens of a text, rule C - H, and the
whole step then does harm on other data. So the share of it is taken that is best on rows kept apart, from none to all:

    s = tr(D (C' - H)' w0') / tr(D H D')   for the step D, with moments of these rows.
"""

from __future__ import annotations

import numpy as np

from ..blas import product
from ..quantized_weight import Floats, QuantizedWeight
from .in_order import round_towards
from .method import Method, Problem


def _qronos(problem: Problem) -> QuantizedWeight:
    return round_towards(problem, _target(problem))


def _target(problem: Problem) -> Floats:
    learned, apart = problem.moments, problem.apart
    if learned.cross is None or apart.cross is None:
        return problem.rows
    groups, size = learned.second.shape[:2]
    rows = problem.rows.reshape(groups, -1, size)
    step = learned.in_order.solve(product(rows, learned.cross.transpose(0, 2, 1) - learned.second))
    moved = product(rows, apart.cross.transpose(0, 2, 1) - apart.second)
    wanted = np.einsum("gnk,gnk->g", step, moved, dtype=np.float64)
    spread = np.einsum("gnk,gnk->g", product(step, apart.second), step, dtype=np.float64)
    share = np.clip(np.divide(wanted, spread, out=np.zeros_like(wanted), where=spread > 0), 0, 1)
    step *= share[:, None, None].astype(np.float32)
    target: Floats = (rows + step).reshape(problem.rows.shape)
    return target


QRONOS = Method("qronos", _qronos, reads_both_paths=True, target=_target)
