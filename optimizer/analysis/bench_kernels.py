"""Products of ONNX Runtime and on our execution provider side by side, against what the machine could do."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import OnnxpressError
from ..runtime.kernel_case import INT8_OPS, Case
from ..runtime.kernel_models import sides, weight_bytes
from ..runtime.machine import saturation_note
from ..runtime.probe import Probe
from ..runtime.session import open_session, session_options
from ..runtime.timing import take_turns
from .bench import machine, setup

if TYPE_CHECKING:
    from rich.console import Console

_CLOSE = 0.05  # relative error between two ways of rounding activations; a wrong product is far beyond


@dataclasses.dataclass(frozen=True)
class KernelTiming:
    """Figures of one case, for one product.

    Attributes:
        case: The sizes.
        stock: Median seconds in stock ONNX Runtime.
        ours: Median seconds on our execution provider.
        gops: 2 M N K operations over `ours`, in 1e9 a second.
        peak_share: `gops` over the int8 rate of all threads out of registers.
        bandwidth: Bytes a second that all threads read from memory, timed in turns with the product: it drifts.
        read_share: Bytes of the weight over `ours`, over `bandwidth`. Beyond 1 where the weight stays in a cache.
        ratio: `stock` over `ours`.
    """

    case: Case
    stock: float
    ours: float
    gops: float
    peak_share: float
    bandwidth: float
    read_share: float
    ratio: float


@dataclasses.dataclass(frozen=True)
class KernelBenchmark:
    """All figures of one run.

    Attributes:
        timings: In the order of the cases.
        peak: int8 operations a second of all threads.
        machine: As in `Benchmark`.
        setup: As in `Benchmark`.
    """

    timings: list[KernelTiming]
    peak: float
    machine: str
    setup: str

    def to_json(self) -> str:
        """Everything as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def print(self, console: Console) -> None:
        """A table for a person."""
        from rich.table import Table

        peak = f"int8 peak {self.peak / 1e9:,.0f} GOPS"
        table = Table(title=f"{self.machine}\n{self.setup}\n{peak}", title_justify="left", box=None)
        for column in (
            "op",
            "K x N",
            "bits",
            "block",
            "M",
            "ORT ms",
            "ours ms",
            "GOPS",
            "of peak",
            "memory GB/s",
            "of memory",
            "ratio",
        ):
            table.add_column(column, justify="right")
        for t in self.timings:
            c = t.case
            codes = c.format if c.op == "minifloat" else str(c.bits)
            table.add_row(
                c.op, f"{c.K} x {c.N}", codes, str(c.block_size or "K"), str(c.M), f"{1e3 * t.stock:.3f}",
                f"{1e3 * t.ours:.3f}", f"{t.gops:,.0f}", f"{t.peak_share:.0%}",
                f"{t.bandwidth / 1e9:.1f}", f"{t.read_share:.0%}", f"{t.ratio:.2f}x",
            )  # fmt: skip
        console.print(table)
        few = [t.ratio for t in self.timings if t.case.M < 16]
        many = [t.ratio for t in self.timings if t.case.M >= 16]
        for label, ratios in (("M < 16", few), ("M >= 16", many)):
            if ratios:
                mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
                console.print(f"{label}: geometric mean {mean:.2f}x, least {min(ratios):.2f}x")


def bench_kernels(
    cases: Sequence[Case],
    *,
    accuracy_level: int | None = None,
    symmetric: bool = True,
    threads: int | None = None,
    rounds: int = 5,
    cold: int = 0,
    progress: Callable[[str, int, int], None] = lambda _stage, _done, _total: None,
) -> KernelBenchmark:
    """Time products of random weights, in turns.

    Args:
        cases: What to time; cases that follow each other and differ only in M share a model.
        accuracy_level: Of MatMulNBits, for both, 4 by default, and of MatMulMiniFloat, 0 by default.
        symmetric: MatMulNBits without zero points.
        threads: Intra-op threads; all cores by default.
        rounds: Turns of each side.
        cold: Bytes that the weights of a model take at least, so that they come from memory: as many nodes with
            weights of their own as it takes. One node by default.
        progress: Told how the work goes on.

    Raises:
        OnnxpressError: The results differ, or ONNX Runtime refuses the model.
    """
    threads = threads or len(os.sched_getaffinity(0))
    probe = Probe(threads)
    peak = probe.dot_rate()
    timings: list[KernelTiming] = []
    for group in _models_of(cases):
        weight, op = weight_bytes(group[0], symmetric), group[0].op
        level = (0 if op == "minifloat" else 4) if accuracy_level is None else accuracy_level
        pair = sides(group[0], cold, level, symmetric)
        stock = open_session(pair[0].data, session_options(threads=threads))
        # Named, a family takes also what it would leave because ONNX Runtime is faster.
        chosen = session_options(threads=threads, ours=op == "minifloat", provider={"claim": op})
        ours = open_session(pair[1].data, chosen)
        nodes = [side.nodes for side in pair]
        del pair
        for case in group:
            rng = np.random.default_rng(case.M)
            feeds = {"A": rng.standard_normal((case.M, case.K), dtype=np.float32)}
            _compare(case, stock.run(None, feeds), ours.run(None, feeds))
            runs = [lambda: stock.run(None, feeds), lambda: ours.run(None, feeds), probe.read]  # noqa: B023
            seconds = [float(np.median(times)) for times in take_turns(runs, rounds)]
            bandwidth = probe.bytes / seconds.pop()
            seconds = [each / count for each, count in zip(seconds, nodes, strict=True)]
            operations = 2 * case.M * case.N * case.K
            timings.append(
                KernelTiming(
                    case, seconds[0], seconds[1], operations / seconds[1] / 1e9, operations / seconds[1] / peak,
                    bandwidth, weight / seconds[1] / bandwidth, seconds[0] / seconds[1],
                )
            )  # fmt: skip
            progress("bench", len(timings), len(cases))
    note = saturation_note() if any(case.op in INT8_OPS for case in cases) else []
    return KernelBenchmark(timings, peak, machine(), "\n".join([setup(threads, {}), *note]))


def _models_of(cases: Sequence[Case]) -> Iterator[list[Case]]:
    group: list[Case] = []
    for case in cases:
        if group and dataclasses.replace(case, M=group[0].M) != group[0]:
            yield group
            group = []
        group.append(case)
    if group:
        yield group


def _compare(case: Case, stock: Sequence[np.ndarray], ours: Sequence[np.ndarray]) -> None:
    for want, got in zip(stock, ours, strict=False):  # ours may have more
        error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
        if not error < _CLOSE:
            raise OnnxpressError(f"{case}: the results differ by {error:.1%} of their norm; nothing was timed")
