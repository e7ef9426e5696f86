"""Block-sparse products beside dense ones and beside the sparse products of other libraries."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..runtime import sparse_runs
from ..runtime.machine import saturation_note
from ..runtime.sparse_models import random_weight
from ..runtime.timing import take_turns
from .bench import machine, setup
from .sparse_case import SparseCase

if TYPE_CHECKING:
    from rich.console import Console


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
        OnnxpressError: ONNX Runtime refuses a model.
    """
    threads = threads or len(os.sched_getaffinity(0))
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
