"""HQQ: the zero point of each block by half-quadratic splitting, of the weights alone.

Errors of rounding are taken to be mostly small with a few that are large, of the weights that are cut off, which
sum |e|^p with p < 1 says. With an error r of each weight that may stay, in units of the scale,

    min over z, r of  sum |r|^p + beta / 2 sum (r - (x - q + z))^2,   x = w / s,   q = clip(round(x + z)),

is solved by turns (Badri & Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models", its two
sub-problems), beta growing by kappa each time:

    r = sign(e) max(|e| - |e|^(p - 1) / beta, 0),  e = x - q + z;     z = mean(q - x + r).

The scale stays. The codes' zero points are whole, so the one found is rounded, and taken where sum |e|^p is less than
before. That is seldom: z moves by less than half a code. (On products of a language model at 4 to 2 bits a zero point
that is not rounded is worth 0.1 to 0.9 dB on data, a rounded one nothing. MatMulNBits takes real ones as float32, which
are 0.22 bits more of each weight in blocks of 128: spent on codes, these are worth 1.3 dB.)

The same splitting with the scale in place of z, s = sum((x - r) q) / sum(q q), is not done: it lowers the sum of
|e|^p by cutting off the largest weights, by which products lost 1 to 6 dB. So symmetric blocks and floating-point
numbers, which have no zero point, are those of rounding to nearest.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..formats import Format
from ..quantized_weight import QuantizedWeight
from ..rtn import quantize_rtn
from .method import Floats, Method, Problem
from .pieces import changed

_P = np.float32(0.7)
_BETA, _KAPPA, _TURNS = 10.0, 1.01, 20


def _hqq(problem: Problem) -> QuantizedWeight:
    scheme, rows = problem.scheme, problem.rows
    start = quantize_rtn(rows, scheme, True, convolution=problem.convolution)
    if scheme.symmetric or not scheme.integer:
        return start
    form, K = scheme.number_format, rows.shape[1]
    block, blocks = scheme.codes_per_block(K), scheme.blocks(K)
    counted = (np.arange(blocks * block) < K).reshape(blocks, block)

    def move(given: Floats, numbers: Floats, scales: Floats, zeros: Floats) -> tuple[Floats, Floats, Floats]:
        units, before = scales[..., None], zeros[..., None]
        padded = np.pad(given, [(0, 0), (0, 0), (0, blocks * block - K)]).reshape(*scales.shape, block)
        scaled = np.divide(padded, units, out=np.zeros_like(padded), where=units != 0)
        whole = form.round(real_zeros(scaled, before, counted, form))
        better = _damage(scaled, whole, counted, form) < _damage(scaled, before, counted, form)
        found = form.round(scaled + whole)
        spread = np.broadcast_to(better, found.shape).reshape(*scales.shape[:2], -1)[..., :K]
        numbers = np.where(spread, found.reshape(*scales.shape[:2], -1)[..., :K], numbers)
        return numbers, scales, np.where(better, whole, before)[..., 0]

    return changed(start, rows, 1, move)


def real_zeros(scaled: Floats, zeros: Floats, counted: npt.NDArray[np.bool_], form: Format) -> Floats:
    """The zero points of least sum of |e|^p that are met, which need not be whole.

    Args:
        scaled: Weights over their scales, [..., block].
        zeros: To begin with, [..., 1].
        counted: Which are weights, and no padding; broadcasts to `scaled`.
        form: Of the codes.

    Returns:
        [..., 1].
    """
    best, least = zeros, _damage(scaled, zeros, counted, form)
    beta = _BETA
    for _ in range(_TURNS):
        rounded = form.round(scaled + zeros)
        kept = _shrunk(scaled - (rounded - zeros), beta)
        zeros = np.mean(rounded - scaled + kept, -1, keepdims=True, where=counted)
        beta *= _KAPPA
        damage = _damage(scaled, zeros, counted, form)
        best = np.where(damage < least, zeros, best)
        least = np.minimum(damage, least)
    return best


def _shrunk(errors: Floats, beta: float) -> Floats:
    """What of errors stays: the proximal step of |e|^p."""
    size = np.abs(errors)
    with np.errstate(divide="ignore"):  # 0 stays
        kept: Floats = np.maximum(size - size ** (_P - 1) / np.float32(beta), 0)
    return np.copysign(kept, errors)


def _damage(scaled: Floats, zeros: Floats, counted: npt.NDArray[np.bool_], form: Format) -> Floats:
    """The sum of |e|^p, [..., 1]."""
    errors = scaled - (form.round(scaled + zeros) - zeros)
    damage: Floats = np.sum(np.abs(errors) ** _P, -1, keepdims=True, where=counted)
    return damage


HQQ = Method("hqq", _hqq)
"""Zero points by half-quadratic splitting."""
