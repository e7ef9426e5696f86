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

from ..gptq import inverse_factor
from ..input_moments import InputMoments
from ..quantized_weight import Floats, QuantizedWeight
from .in_order import round_towards
from .method import Method, Problem


def _qronos(problem: Problem) -> QuantizedWeight:
    return round_towards(problem, _target(problem))


def _target(problem: Problem) -> Floats:
    if problem.moments.cross is None or problem.apart.cross is None:
        return problem.rows
    target: Floats = problem.rows + np.concatenate([
        _step(rows, InputMoments(second[None], 1, cross[None]), InputMoments(held[None], 1, held_cross[None]))
        for rows, second, cross, held, held_cross in zip(
            np.split(problem.rows, len(problem.moments.second)), problem.moments.second, problem.moments.cross,
            problem.apart.second, problem.apart.cross, strict=True,
        )
    ])  # fmt: skip
    return target


def _step(rows: Floats, learned: InputMoments, apart: InputMoments) -> Floats:
    """What is added to the weights [n, K] of one group before they are rounded."""
    assert learned.cross is not None
    assert apart.cross is not None
    factor = inverse_factor(learned.second)[0].astype(np.float32)
    whole = ((rows @ (learned.cross[0].T - learned.second[0])) @ factor.T) @ factor
    wanted = np.einsum("nk,nk->", whole, rows @ (apart.cross[0].T - apart.second[0]), dtype=np.float64)
    spread = np.einsum("nk,nk->", whole @ apart.second[0], whole, dtype=np.float64)
    share = np.clip(wanted / spread, 0, 1) if spread > 0 else 0
    step: Floats = whole * np.float32(share)
    return step


QRONOS = Method("qronos", _qronos, reads_both_paths=True, target=_target)
