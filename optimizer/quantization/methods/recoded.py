"""A rounded weight with other codes."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
from onnxpress.custom_ops import _kernels

from ..quantized_weight import QuantizedWeight
from ..schemes import WeightScheme
from .method import Floats


def recoded(
    start: QuantizedWeight, scheme: WeightScheme, rows: Floats, numbers: npt.NDArray[np.floating],
    scales: Floats | None = None, zeros: Floats | None = None,
) -> QuantizedWeight:  # fmt: skip
    """Put other numbers, and scales and zero points where they are given, into a rounded weight.

    Args:
        start: The rounded weight.
        scheme: Its scheme.
        rows: What it is rounded from, [N, K].
        numbers: Of the scheme's format, before zero points are taken off and scales multiply, [N, K].
        scales: float32 [N, blocks], representable in the scheme's scale_type.
        zeros: Numbers of the zero points, [N, blocks].

    Returns:
        The weight, with its squared error; what a search of scales minimised is that of `start`.
    """
    form, K = scheme.number_format, rows.shape[1]
    block = scheme.codes_per_block(K)
    zero_points = start.zero_points if zeros is None else form.encode(zeros)
    codes = np.repeat(zero_points, block, axis=1)  # which pads keep
    codes[:, :K] = form.encode(np.asarray(numbers, np.float32))
    packed = _kernels.pack_zero_points(codes.reshape(-1, block), scheme.bits).reshape(start.packed.shape)
    moved = QuantizedWeight(packed, start.scales if scales is None else scales, zero_points, start.error)
    error = float(np.square(moved.decoded(scheme, K) - rows, dtype=np.float64).sum())
    return dataclasses.replace(moved, error=dataclasses.replace(start.error, error=error))
