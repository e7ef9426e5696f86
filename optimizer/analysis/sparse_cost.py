"""What a block-sparse product costs on this machine, and what the dense ones do: measured, not modelled."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from ..sparsity import Block
from . import sparse_runs
from .timing import take_turns


@dataclasses.dataclass(frozen=True)
class SparseCost:
    """Median seconds of one product.

    Attributes:
        sparse: Of BlockSparseMatMul.
        float32: Of ONNX Runtime's MatMul.
        int8: Of our dense product of 8-bit numbers; None for a float32 weight, which has no such form.
    """

    sparse: float
    float32: float
    int8: float | None

    @property
    def dense(self) -> float:
        """Of the fastest dense form."""
        return self.float32 if self.int8 is None else min(self.float32, self.int8)


def measure(
    weight: npt.NDArray[Any], block: Block, m: int, *, threads: int | None = None, rounds: int = 1
) -> SparseCost:
    """Time a weight in turns, in memory.

    Args:
        weight: int8 (activations are rounded at run time) or float32 [K, N]; blocks of zeros are those that are not
            stored. Only where its zeros are matters.
        block: Sizes of a block.
        m: Rows of activations.
        threads: Intra-op threads; ONNX Runtime's choice by default.
        rounds: Turns of each, some 0.2 s.

    Raises:
        OnnxpressError: ONNX Runtime refuses a model.
    """
    integer = weight.dtype == np.int8
    codes = weight if integer else np.sign(weight).astype(np.int8)
    A = np.random.default_rng(0).standard_normal((m, weight.shape[0]), dtype=np.float32)
    runs = [
        sparse_runs.ours(codes, block, A, dtype="int8" if integer else "float32", threads=threads),
        sparse_runs.dense_float32(codes, A, threads),
    ]
    if integer:
        runs.append(sparse_runs.dense_int8(codes, A, threads))
    seconds = [float(np.median(times)) for times in take_turns(runs, rounds)]
    return SparseCost(seconds[0], seconds[1], seconds[2] if integer else None)
