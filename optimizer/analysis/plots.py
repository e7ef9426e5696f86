"""Plots as PNG files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from ..errors import OnnxpressError
from .steps import Steps, kinds

if TYPE_CHECKING:
    from .bench import Benchmark
    from .bench_kernels import KernelBenchmark
    from .compare import Comparison
    from .format_study import FormatStudy
    from .length_study import LengthStudy
    from .sparsity_study import Point, Study

_INK, _ACCENT = "#4a6fa5", "#c8553d"
_MOST_LABEL = 44
_MOST_KINDS = 7  # of steps that have a colour of their own
_STYLES = ("-", "--", ":", "-.")


def shorten(name: str, most: int = _MOST_LABEL) -> str:
    """The name with its middle left out where it is too long: both ends tell layers apart."""
    if len(name) <= most:
        return name
    head = (most - 1) // 2
    return f"{name[:head]}…{name[-(most - 1 - head) :]}"


def plot_benchmark(benchmark: Benchmark, path: str | Path) -> None:
    """Bars of the median latency, with marks from the tenth to the ninetieth percentile, and of steps, if there are."""
    timings = benchmark.timings
    if benchmark.steps:
        figure, (axes, below) = _figure(2.8 + 0.55 * (len(timings) + len(benchmark.steps)), rows=2)
        _plot_steps(benchmark.steps, below)
    else:
        figure, axes = _figure(1.4 + 0.55 * len(timings))
    medians = [1e3 * t.median for t in timings]
    spread = [[1e3 * (t.median - t.low) for t in timings], [1e3 * (t.high - t.median) for t in timings]]
    labels = [shorten(Path(t.model).name) for t in timings]
    places = list(range(len(timings)))
    axes.barh(places, medians, xerr=spread, color=[_ACCENT if t.ours else _INK for t in timings], capsize=3, height=0.6)
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    most = max(1e3 * t.high for t in timings)
    for place, timing in zip(places, timings, strict=True):
        text = f"{1e3 * timing.median:.2f} ms, {timing.ratio:.2f}x"
        axes.text(1e3 * timing.high + 0.015 * most, place, text, va="center", fontsize=9)
    axes.set_xlim(0, 1.35 * most)
    axes.set_xlabel("median latency in ms; whiskers from 10 % to 90 % of the runs")
    axes.set_title(f"{benchmark.machine}\n{benchmark.setup}", fontsize=9, loc="left")
    _save(figure, path)


def _plot_steps(found: Sequence[Steps], axes: Any) -> None:
    """Bars made of the time of each kind of step; kinds that take little everywhere are one."""
    places, ends = list(range(len(found))), [0.0] * len(found)
    shown = kinds(found)
    named, little = shown[:_MOST_KINDS], shown[_MOST_KINDS:]
    rows = [(kind, [kind]) for kind in named] + ([("less", little)] if little else [])
    for index, (label, together) in enumerate(rows):
        widths = [1e3 * sum(step.seconds for step in each.steps if step.kind in together) for each in found]
        axes.barh(places, widths, left=ends, height=0.6, label=label, color=f"C{index}")
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    axes.set_yticks(places, [shorten(Path(each.model).name) for each in found])
    axes.invert_yaxis()
    axes.set_xlabel("ms by kind of step, under the profiler")
    axes.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.35 if len(found) > 2 else -0.6))


def plot_kernels(benchmark: KernelBenchmark, path: str | Path) -> None:
    """How many times faster than ONNX Runtime, by rows, a line a shape."""
    figure, axes = _figure(4.0)
    cases = {(t.case.K, t.case.N): None for t in benchmark.timings}
    for K, N in cases:
        line = [(t.case.M, t.ratio) for t in benchmark.timings if (t.case.K, t.case.N) == (K, N)]
        axes.plot(*zip(*line, strict=True), marker="o", label=f"{K} x {N}")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    rows = sorted({t.case.M for t in benchmark.timings})
    axes.set_xticks(rows, [str(M) for M in rows])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("rows M")
    axes.set_ylabel("times as fast as ONNX Runtime")
    axes.legend(title="K x N", fontsize=8)
    case = benchmark.timings[0].case
    what = f"{case.op}, {case.bits} bits" + (f", block {case.block_size}" if case.block_size else "")
    axes.set_title(f"{what}\n{benchmark.machine}\n{benchmark.setup}", fontsize=9, loc="left")
    _save(figure, path)


def plot_comparison(comparison: Comparison, path: str | Path, top: int = 25) -> None:
    """SQNR along the network, and the tensors that add most noise."""
    tensors = [t for t in comparison.tensors if math.isfinite(t.added)][:top]
    figure, axes = _figure(1.6 + 0.27 * max(len(tensors), 1))
    places = list(range(len(tensors)))
    axes.barh(places, [100 * t.added for t in tensors], color=[_ACCENT if t.output else _INK for t in tensors])
    axes.set_yticks(places, [shorten(t.name) for t in tensors], fontsize=8)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    most = max((100 * t.added for t in tensors), default=1.0) or 1.0
    for place, tensor in zip(places, tensors, strict=True):
        axes.text(100 * tensor.added + 0.01 * most, place, f"{tensor.sqnr:.1f} dB", va="center", fontsize=8)
    axes.set_xlim(0, 1.15 * most)
    axes.set_xlabel("noise added, % of the tensor's power; beside it the tensor's SQNR")
    axes.set_title(f"{Path(comparison.second).name} against {Path(comparison.first).name}", fontsize=10, loc="left")
    _save(figure, path)


def plot_study(study: Study, path: str | Path) -> None:
    """A panel a task, and one of the speed: a line a block and criterion, by sparsity; the float model is a level."""
    from matplotlib.figure import Figure

    float32 = study.points[0]
    timed = bool(float32.milliseconds)
    panels = [*study.metrics, *(["speed-up"] if timed else [])]
    figure = Figure(figsize=(max(6.0, 4.2 * len(panels)), 4.2), layout="constrained")
    lines: dict[tuple[str, str], list[Point]] = {}
    for point in study.points[1:]:
        lines.setdefault((point.block, point.criterion), []).append(point)
    blocks = list(dict.fromkeys(block for block, _ in lines))
    criteria = list(dict.fromkeys(criterion for _, criterion in lines))
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.axhline(1.0 if panel == "speed-up" else float32.scores[panel], color="black", linewidth=0.8)
        for (block, criterion), points in lines.items():
            points = sorted(points, key=lambda point: point.sparsity)
            axes.plot(
                [100 * point.sparsity for point in points],
                [point.ratio if panel == "speed-up" else point.scores[panel] for point in points],
                color=f"C{blocks.index(block)}", linestyle=_STYLES[criteria.index(criterion) % len(_STYLES)],
                marker="o", markersize=4, label=f"{block}, {criterion}",
            )  # fmt: skip
        axes.set_xlabel("blocks removed, %")
        axes.set_title("times as fast as float32" if panel == "speed-up" else f"{panel}: {study.metrics[panel]}")
        if panel == "speed-up":
            axes.set_ylim(bottom=0)
    figure.axes[0].legend(fontsize=8)
    title = f"{study.machine}\n{study.setup}; the black line is float32" if timed else "the black line is float32"
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    _save(figure, path)


def plot_lengths(study: LengthStudy, path: str | Path) -> None:
    """What is lost by what the layers cost; the points that meet a bound are marked with it."""
    figure, axes = _figure(4.2)
    unit = 1.0 if study.in_nats else 100.0
    points = [point for point in study.front if math.isfinite(point.loss)]
    axes.plot(
        [100 * point.cost for point in points], [unit * point.loss for point in points], color=_INK, marker="o",
        markersize=4,
    )  # fmt: skip
    for each in study.chosen:
        if each.found is not None:
            place = 100 * each.found.cost, unit * each.found.loss
            axes.plot(*place, color=_ACCENT, marker="o", markersize=7)
            bound = f"{each.most:g} nats" if study.in_nats else f"{100 * each.most:g} %"
            axes.annotate(f"within {bound}", place, xytext=(6, 6), textcoords="offset points", fontsize=9)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("time of the layers, % of that with all tokens")
    axes.set_ylabel(f"{study.metric}: lost, {'nats per token' if study.in_nats else '%'}")
    axes.set_title(Path(study.model).name, fontsize=10, loc="left")
    _save(figure, path)


def plot_formats(study: FormatStudy, path: str | Path) -> None:
    """Loss of each model by scheme, a cross at the edge where a scheme failed, and the coverage beside it."""
    from matplotlib.figure import Figure

    coverage = study.coverage
    schemes, models = list(coverage), list(dict.fromkeys(verdict.model for verdict in study.verdicts))
    places = range(len(schemes))
    figure = Figure(figsize=(11, 2.2 + 0.4 * len(schemes)), layout="constrained")
    losses, shares = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    bound = 100 * study.max_drop
    losses.axvline(bound, color="black", linewidth=0.8)
    losses.set_xscale("symlog", linthresh=max(bound, 0.01))
    for index, model in enumerate(models):
        found = {v.scheme: study.on_one_scale(v) for v in study.verdicts if v.model == model}
        known = [(100 * loss, y) for y, scheme in zip(places, schemes, strict=True) if _finite(loss := found[scheme])]
        failed = [y for y, scheme in zip(places, schemes, strict=True) if not _finite(found[scheme])]
        color = f"C{index % 10}"
        losses.plot([x for x, _ in known], [y for _, y in known], "o", color=color, label=shorten(model))
        losses.plot(
            [1.0] * len(failed), failed, "x", color=color, transform=losses.get_yaxis_transform(), clip_on=False
        )
    low, high = losses.get_xlim()
    ticks = [bound * step for step in (-10, -1, -0.5, 0, 0.5, 1, 10, 100) if low <= bound * step <= high]
    losses.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    losses.set_yticks(places, schemes)
    losses.invert_yaxis()
    nats = f"; kl: the line is {study.max_kl:g} nats" if any(v.in_nats for v in study.verdicts) else ""
    losses.set_xlabel(
        f"loss against float32, %; the line is {bound:g} %, a cross at the edge a scheme that failed{nats}"
    )
    shares.barh(places, [100 * share for share in coverage.values()], color=_INK, height=0.6)
    for place, share in zip(places, coverage.values(), strict=True):
        shares.text(100 * share + 2, place, f"{100 * share:.0f} %", va="center", fontsize=9)
    shares.set_xlim(0, 120)
    shares.set_xticks([0, 50, 100])
    shares.set_xlabel("models that pass, %")
    for axes in (losses, shares):
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*losses.get_legend_handles_labels(), loc="outside upper left", ncols=4, fontsize=8)
    _save(figure, path)


def _finite(loss: float | None) -> TypeGuard[float]:
    return loss is not None and math.isfinite(loss)


def _figure(height: float, rows: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots(rows)
    for each in figure.axes:
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: str | Path) -> None:
    try:
        figure.savefig(path, dpi=150, format="png")
    except OSError as error:
        raise OnnxpressError(f"{path}: cannot write the plot: {error.strerror}") from error
