"""Each weight to the number nearest to it; the methods differ in the scales."""

from __future__ import annotations

from ..quantized_weight import QuantizedWeight
from ..rtn import quantize_rtn
from .method import Method, Problem


def _round_plainly(problem: Problem) -> QuantizedWeight:
    return quantize_rtn(problem.rows, problem.scheme, True, convolution=problem.convolution)


def _search(problem: Problem) -> QuantizedWeight:
    return quantize_rtn(
        problem.rows, problem.scheme, True, convolution=problem.convolution, importance=problem.importance(1)
    )


RTN = Method("rtn", _round_plainly)
"""Scales by the weights alone, as without data."""
SEARCH = Method("search", _search)
"""Scales of least error where errors count by the mean square of their input, the diagonal of H."""
