"""Block-sparse products beside dense ones and beside the sparse products of other libraries."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError
from ..sparsity import Block
from . import sparse_runs
from .bench import machine, setup
from .machine import saturation_note
from .sparse_models import random_weight
from .timing import take_turns

if TYPE_CHECKING:
    from rich.console import Console

SHAPES = ((1024, 1024), (1024, 4096), (4096, 1024))
"""K x N of products in encoders of text."""
BLOCKS = (Block(4, 4), Block(4, 1), Block(1, 4), Block(1, 16))
SPARSITIES = (0.7, 0.75, 0.8, 0.85, 0.9)
ROWS = (1, 8, 16, 128)
DTYPES = ("int8", "uint8", "float32")


@dataclasses.dataclass(frozen=True)
class SparseCase:
    """One product: [M, K] x [K, N].

    Attributes:
        M: Rows.
        K: Length of the reduction.
        N: Output channels.
        block: Sizes of a block.
        sparsity: Share of the blocks that are zero, spread at random.
        dtype: "int8", of float32 to float32, activations rounded row by row; "uint8", of codes to codes; "float32".
    """

    M: int
    K: int
    N: int
    block: Block
    sparsity: float
    dtype: str = "int8"


@dataclasses.dataclass(frozen=True)
class SparseTiming:
    """Median seconds of one case.

    Attributes:
        case: The sizes.
        ours: Of BlockSparseMatMul.
        others: By name. "PyTorch int8" does what ours does; "oneDNN int8" goes from int8 to int32: it neither rounds
            activations nor scales outputs.
    """

    case: SparseCase
    ours: float
    others: dict[str, float]

    def ratio(self, other: str) -> float:
        """How many times faster than that one."""
        return self.others[other] / self.ours


@dataclasses.dataclass(frozen=True)
class SparseBenchmark:
    """All figures of one run.

    Attributes:
        timings: In the order of the cases.
        machine: As in `Benchmark`.
        setup: As in `Benchmark`.
    """

    timings: list[SparseTiming]
    machine: str
    setup: str

    def to_json(self) -> str:
        """Everything as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def print(self, console: Console) -> None:
        """A table for a person: milliseconds of ours, and how many times slower the others are."""
        from rich.table import Table

        names = list(dict.fromkeys(name for timing in self.timings for name in timing.others))
        table = Table(title=f"{self.machine}\n{self.setup}", title_justify="left", box=None)
        for column in ("K x N", "block", "sparsity", "M", "dtype", "ours ms", *(f"x {name}" for name in names)):
            table.add_column(column, justify="right")
        for t in self.timings:
            c = t.case
            ratios = (f"{t.ratio(name):.2f}" if name in t.others else "" for name in names)
            table.add_row(
                f"{c.K} x {c.N}", str(c.block), f"{c.sparsity:.0%}", str(c.M), c.dtype, f"{1e3 * t.ours:.3f}", *ratios
            )
        console.print(table)


def bench_sparse(
    cases: Sequence[SparseCase],
    *,
    threads: int | None = None,
    rounds: int = 1,
    progress: Callable[[str, int, int], None] = lambda _stage, _done, _total: None,
) -> SparseBenchmark:
    """Time products of random weights, in turns.

    Args:
        cases: What to time.
        threads: Threads of those that have them; all cores by default.
        rounds: Turns of each side.
        progress: Told how the work goes on.

    Raises:
        UsageError: A sparsity outside [0, 1), or a size below 1.
        OnnxpressError: ONNX Runtime refuses a model.
    """
    threads = threads or len(os.sched_getaffinity(0))
    for case in cases:
        if not 0 <= case.sparsity < 1:
            raise UsageError(f"sparsity is {case.sparsity}, must be at least 0 and below 1")
        if min(case.M, case.K, case.N) < 1:
            raise UsageError(f"{case.M} rows of {case.K} x {case.N}: sizes must be positive")
    timings: list[SparseTiming] = []
    for case in cases:
        timings.append(_time(case, threads, rounds))
        progress("bench", len(timings), len(cases))
    note = saturation_note() if any(case.dtype != "float32" for case in cases) else []
    return SparseBenchmark(timings, machine(), "\n".join([setup(threads, {}), *note]))


def _time(case: SparseCase, threads: int, rounds: int) -> SparseTiming:
    weight = random_weight(case.K, case.N, case.block, case.sparsity)
    A = np.random.default_rng(case.M).standard_normal((case.M, case.K), dtype=np.float32)
    codes = case.dtype == "uint8"
    runs = {
        "ours": [sparse_runs.ours(weight, case.block, A, dtype=case.dtype, threads=threads)],
        "ORT float32": [sparse_runs.dense_float32(weight, A, threads)],
        "our dense int8": [sparse_runs.dense_int8(weight, A, threads)],
        **({"ORT int8": [sparse_runs.dense_codes(weight, A, threads)]} if codes else {}),
        **sparse_runs.peers(weight, case.block, A, threads, codes=codes),
    }
    samples = iter(take_turns([run for several in runs.values() for run in several], rounds))
    seconds = {
        name: min(float(np.median(next(samples))) for _ in several) for name, several in runs.items()
    }  # fmt: skip
    return SparseTiming(case, seconds.pop("ours"), seconds)
