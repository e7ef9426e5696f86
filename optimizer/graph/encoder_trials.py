"""Tries of a model of tokens without a past: its inputs [batch, sequence, ...] tell batch and sequence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from .matching import opset_of
from .score_mask import Case
from .trial import Array, Trial

_SIZES = ((3, 5), (2, 7))
_AXES = 2
_RANKS = (2, 3)
_KINDS = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL, ir.DataType.FLOAT)


def encoder_cases(model: ir.Model) -> Sequence[Case]:
    """Cases of two sizes, none without such inputs; a batch or a sequence that the model fixes stays as it is."""
    inputs = [value for value in model.graph.inputs if value.shape is not None and len(value.shape) in _RANKS]
    return [_case(inputs, opset_of(model), sizes) for sizes in _SIZES] if inputs else []


def _case(inputs: Sequence[ir.Value], opset: int, wanted: Sequence[int]) -> Case:
    shapes = [list(value.shape or ()) for value in inputs]
    sizes, names = list(wanted), {}
    for axis in range(_AXES):
        fixed = [dim for shape in shapes if isinstance(dim := shape[axis], int)]
        if len({*fixed}) == 1 and len(fixed) == len(shapes):
            sizes[axis] = fixed[0]
        for shape in shapes:
            if isinstance(dim := shape[axis], ir.SymbolicDim) and dim.value is not None:
                names[dim.value] = sizes[axis]
    trial = Trial(opset, names, lambda value: _input(value, sizes) if value in inputs else None)
    return Case(trial, sizes[0], sizes[1], past=0)


def _input(value: ir.Value, sizes: Sequence[int]) -> Array | None:
    """Numbers that count up: positions, tokens of several kinds, or a mask that leaves out the first one."""
    if value.dtype not in _KINDS or value.shape is None or len(value.shape) > _AXES:
        return None
    shape = [dim if isinstance(dim, int) else size for dim, size in zip(value.shape, sizes, strict=True)]
    return np.broadcast_to(np.arange(shape[1]), shape).astype(value.dtype.numpy())
