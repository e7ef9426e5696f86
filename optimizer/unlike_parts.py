"""Tensors that codes of 8 bits cannot hold as a whole, because they are joined of parts that are unlike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx_ir as ir

from .calibration import TensorStatistics
from .passes.constants import array_of, is_constant
from .passes.joined_parts import joined_parts

_LEAST_LEVELS = 16
"""Steps of a tensor that the numbers of each of its parts have to span: 4 bits of the 8."""


def parts_of(model: ir.Model, tensors: Iterable[ir.Value]) -> list[str]:
    """Names of the varying tensors that others are joined of, which a calibration has to see."""
    joined, wanted = joined_parts(model.graph), list(tensors)
    parts = dict.fromkeys(part for tensor in wanted for part in joined.get(tensor, {}))
    return [part.name or "" for part in parts if part.dtype in (None, ir.DataType.FLOAT) and not is_constant(part)]


def unlike_parts(
    model: ir.Model,
    tensors: Iterable[ir.Value],
    statistics: Mapping[str, TensorStatistics],
    range_of: Callable[[str], tuple[float, float]],
) -> dict[str, str]:
    """Tensors whose steps leave nothing of one of their parts, by name, and why.

    Args:
        model: The float model.
        tensors: Those that are to be rounded.
        statistics: What a calibration saw.
        range_of: Lowest and highest number that the codes of a tensor hold, by its name.
    """
    found: dict[str, str] = {}
    joined = joined_parts(model.graph)
    for value in tensors:
        name, parts = value.name or "", joined.get(value, {})
        if not parts or name not in statistics:
            continue
        low, high = range_of(name)
        step = (max(high, 0.0) - min(low, 0.0)) / 255
        for part, factor in parts.items():
            largest = abs(factor) * _largest(part, statistics)
            if 0 < largest < _LEAST_LEVELS * step:
                found[name] = (
                    f"holds {part.name}, up to {largest:.3g}, beside numbers up to {max(high, -low):.3g}, whose "
                    "steps in int8 are too large for it"
                )
                break
    return found


def _largest(value: ir.Value, statistics: Mapping[str, TensorStatistics]) -> float:
    """The largest magnitude of a constant or of a tensor that was observed; 0 where nothing is known."""
    if is_constant(value):
        array = array_of(value)
        finite = array[np.isfinite(array)] if array is not None and array.dtype.kind == "f" else np.zeros(0)
        return float(np.abs(finite).max(initial=0))
    return statistics[value.name or ""].absmax if value.name in statistics else 0.0
