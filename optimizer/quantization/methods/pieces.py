"""Codes that are found anew for a rounded weight, some output channels at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..blas import pool
from ..quantized_weight import QuantizedWeight, pack_codes
from .method import Floats

_CHANNELS = 256
"""Outputs of a piece: so many that H is read seldom, and so few that their arrays stay in the caches."""

Change = Callable[[Floats, Floats, Floats, Floats], tuple[Floats, Floats, Floats]]
"""(weights [G, n, K], numbers [G, n, K], scales and zero points [G, n, blocks]) -> the last three, changed."""


def changed(start: QuantizedWeight, rows: Floats, groups: int, change: Change) -> QuantizedWeight:
    """Change numbers, scales and zero points in parallel.

    Args:
        start: The weight as it is rounded.
        rows: What it is rounded from, [N, K].
        groups: G, of N / G output channels each; a piece has some of each.
        change: What to do to the outputs of a piece. Numbers, of the scheme's format, are those before zero points are
            taken off and scales multiply; scales have to be representable in the scheme's scale_type.

    Returns:
        The weight, with its squared error; what a search of scales minimised is that of `start`. It does not depend on
        the number of threads.
    """
    scheme, K = start.scheme, rows.shape[1]
    form = scheme.number_format
    given = rows.reshape(groups, -1, K)
    shape = groups, -1, scheme.blocks(K)
    packed = start.packed.reshape(*shape, start.packed.shape[2]).copy()
    scales, zero_points = start.scales.reshape(shape).copy(), start.zero_points.reshape(shape).copy()

    def weight(part: Any) -> QuantizedWeight:
        return start.with_channels(_flat(packed[part]), _flat(scales[part]), _flat(zero_points[part]))

    def run(begin: int) -> float:
        part = np.s_[:, begin : begin + step]
        numbers = form.decode(weight(part).code_rows()).reshape(given[part].shape)
        numbers, scales[part], zeros = change(given[part], numbers, scales[part], form.decode(zero_points[part]))
        zero_points[part] = form.encode(zeros)
        codes = pack_codes(form.encode(_flat(numbers)), _flat(zero_points[part]), scheme)
        packed[part] = codes.reshape(packed[part].shape)
        lost = weight(part).rows() - _flat(given[part])
        return float(np.square(lost, dtype=np.float64).sum())

    step = max(1, _CHANNELS // groups)
    with pool() as workers:
        error = math.fsum(workers.map(run, range(0, given.shape[1], step)))
    return dataclasses.replace(weight(np.s_[:]), error=dataclasses.replace(start.error, error=error))


def _flat(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[G, n, ...] -> [G n, ...]."""
    return np.ascontiguousarray(array.reshape(-1, *array.shape[2:]))
