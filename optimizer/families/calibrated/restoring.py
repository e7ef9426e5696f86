"""Moments of a float model and of a rounded one on the same data, for `passes.restore_moments`.

The float model runs once. The rounded one, whose products are mended one depth after the other, runs piece by piece.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ...calibration.collect import MEMORY, in_groups, sizes_of
from ...calibration.observe import Observer
from ...calibration.piecewise import Piecewise
from ...passes.restore_moments import RestoreMoments, depths_of, mendable
from ...planning.result import Progress
from ...quantization.moments import Moments
from ...runtime.feeds import Feeds, bytes_of

_STAGE = "restore moments"
_HELD = 2 * MEMORY
"""Bytes of tensors that are held between two pieces,"""
_LIVE = 4
"""which are as large as so many of the largest result for each set of inputs: branches, and codes beside floats."""


def restore_moments(
    float_model: ir.Model, rounded: ir.Model, data: Sequence[Feeds], progress: Progress
) -> dict[str, str]:
    """Give the channels of a rounded model the moments that they have in float.

    Args:
        float_model: What the rounded model was made of.
        rounded: Changed in place.
        data: Sets of inputs; fewer of them are taken where their tensors are large.
        progress: Told of each part of the float model and of each depth of the rounded one.

    Returns:
        The nodes that stay as they were, and why, by name.

    Raises:
        OnnxpressError: ONNX Runtime cannot run a model.
    """
    names = [node.outputs[0].name or "" for node in float_model.graph if node.op_type in ("Conv", "Gemm")]
    if not names or not data:
        return {}
    largest = max(data, key=bytes_of)
    sizes = sizes_of(float_model, names, largest)
    data = data[: max(1, _HELD // max(1, _LIVE * max(sizes)))]
    groups = in_groups(names, sizes, MEMORY)
    goals = mendable(rounded, names)
    whole, done = len(groups) + len(depths_of(rounded.graph, goals)), 0

    def told(values: Iterable[Mapping[str, np.ndarray]]) -> dict[str, Moments]:
        nonlocal done
        progress(_STAGE, done, whole)
        done += 1
        return _merged(values)

    reference: dict[str, Moments] = {}
    for group in groups:
        observer = Observer(float_model, group)
        reference |= told(dict(zip(group, observer.run(feeds), strict=True)) for feeds in data)
    pieces = Piecewise(rounded, [node.outputs[0].name or "" for node in goals], data)
    restored = RestoreMoments(reference, lambda _model, wanted: told(pieces.run(wanted)))(rounded)
    progress(_STAGE, whole, whole)
    return restored.left


def _merged(values: Iterable[Mapping[str, np.ndarray]]) -> dict[str, Moments]:
    found: dict[str, Moments] = {}
    for batch in values:
        for name, array in batch.items():
            seen = Moments.of(array)
            found[name] = found[name].merge(seen) if name in found else seen
    return found
