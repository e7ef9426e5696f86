"""What is on a page, part by part."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from ...planning.report import Attempt, Report, size_change, size_text
from .layers import Layer, layers_of
from .markup import element
from .plots import Axis, Point, plot
from .tables import Cell, Column, table

_WORST = 5
_LEAST = 1000  # bytes of a weight left in float that is drawn
_SPREAD = 1.02  # of sizes, from which on they tell trials apart
_LEGEND = {
    "before": "before", "taken": "rounded", "worst": "lowest SQNR", "left": "left in float",
    "accepted": "accepted", "refused": "refused",
}  # fmt: skip


def body(report: Report) -> Iterator[Element]:
    """All parts, the most important first."""
    layers = layers_of(report)
    yield element("header", element("h1", report.source), _goes_to(report), _tiles(report, layers))
    warnings = [element("ul", *(element("li", each) for each in report.warnings))] if report.warnings else []
    parts = (
        _section("Warnings", warnings),
        _section("Summary", _summary(report)),
        _section("Outputs beside the original's", _outputs(report)),
        _section("Plots", _side_by_side(_plots(layers))),
        _section("Layers", _layers(layers)),
        _section("What was tried", _trail(report.trail)),
        _section("Left by passes over floats", _passes(report)),
        _section("Time", _times(report)),
        _section("Recipe", _pairs((key, _plain(value)) for key, value in report.recipe.items())),
    )
    yield element("main", *(part for part in parts if part is not None))


def _goes_to(report: Report) -> Element:
    where = report.output if report.output is not None else "a model in memory"
    return element("p", "converted to ", element("code", where), class_="target")


def _tiles(report: Report, layers: Sequence[Layer]) -> Element:
    """The figures that are looked at first."""
    taken = sum(layer.node.taken for layer in layers)
    left = len(layers) - taken
    found: list[tuple[str, str, str]] = []
    if report.size_after:
        change = size_change(report.size_before, report.size_after)
        sizes = f"from {size_text(report.size_before)}" if report.size_before else ""
        found.append(("size", size_text(report.size_after), f"{sizes}, {change}" if change else sizes))
    found.append(("nodes rewritten", f"{taken:,}", ", ".join(f"{n:,} {name}" for name, n in report.schemes.items())))
    found.append(("nodes left", f"{left:,}", "with the reason of each below" if left else ""))
    outputs = [each["sqnr"] for each in _outputs_of(report) if each.get("sqnr") is not None]
    if outputs:
        lowest = min(outputs, key=lambda sqnr: -math.inf if math.isnan(sqnr) else sqnr)
        found.append(("lowest SQNR of an output", _decibels(lowest), f"on {report.details['check']['run_on']}"))
    if told := [(layer.sqnr, layer.node.name) for layer in layers if layer.sqnr is not None]:
        sqnr, name = min(told)
        found.append(("lowest SQNR of a weight", _decibels(sqnr), name))
    found.append(("time", f"{sum(report.seconds.values()):.1f} s", f"peak memory {size_text(report.peak_memory)}"))
    return element("dl", *(_tile(*each) for each in found), class_="tiles")


def _tile(label: str, value: str, note: str) -> Element:
    small = [element("dd", note, class_="note")] if note else []
    return element("div", element("dt", label), element("dd", value), *small)


def _summary(report: Report) -> list[Element]:
    return _pairs([*(("left", f"{count:,} {what}") for what, count in report.left.items()), *report.rows])


def _section(title: str, content: Iterable[Element]) -> Element | None:
    there = list(content)
    return element("section", element("h2", title), *there) if there else None


def _side_by_side(figures: Iterable[Element | None]) -> list[Element]:
    there = [each for each in figures if each is not None]
    return [element("div", *there, class_="plots")] if there else []


def _pairs(pairs: Iterable[tuple[str, str]]) -> list[Element]:
    """Labels and lines; one without a label, or with the same, goes on with the one before."""
    made: list[Element] = []
    last = ""
    for label, line in pairs:
        if label not in ("", last) or not made:
            made.append(element("dt", label))
            last = label
        made.append(element("dd", line))
    return [element("dl", *made, class_="pairs")] if made else []


def _outputs_of(report: Report) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = report.details.get("check", {}).get("outputs", [])
    return found


def _outputs(report: Report) -> list[Element]:
    columns = [
        Column("Output"), Column("SQNR", True, title="signal to quantization noise ratio: more is better"),
        Column("Worst channel", True, title="of the last axis"), Column("Its SQNR", True),
        Column("Channels with more noise than signal", True), Column("Equal elements", True), Column("Shapes"),
    ]  # fmt: skip
    rows = []
    for each in _outputs_of(report):
        shapes = " and ".join("x".join(map(str, shape)) for shape in each["shapes"] or ())
        told = each["equal"] is None and each["shapes"] is None
        rows.append([
            Cell(each["name"], code=True), _number(each["sqnr"], _decibels), _number(each["channel"], str),
            _number(each["channel_sqnr"], _decibels), _number(each["drowned"] if told else None, _percent),
            _number(each["equal"], _percent), Cell(shapes),
        ])  # fmt: skip
    return [table("Outputs", columns, rows)] if rows else []


def _plots(layers: Sequence[Layer]) -> Iterator[Element | None]:
    sized = [(i, layer) for i, layer in enumerate(layers) if layer.weight is not None or layer.node.size >= _LEAST]
    judged = any(layer.product is not None for layer in layers)
    damages = [(index, layer, layer.product if judged else layer.sqnr) for index, layer in enumerate(layers)]
    told = [(index, layer, sqnr) for index, layer, sqnr in damages if sqnr is not None and math.isfinite(sqnr)]
    lowest = sorted(sqnr for *_, sqnr in told)[:_WORST] if len(told) > _WORST else []
    order = Axis("layers in the order of the graph", ticks=False)
    decibels = Axis(f"SQNR of the {'product' if judged else 'weight'}, dB")
    size = Axis("size of the weight", _bytes, log=True)
    sizes = [
        Point(
            index, layer.stored, _title(layer), "taken" if layer.weight is not None else "left",
            layer.node.size if layer.weight is not None else None, f"#layer-{index}",
        )
        for index, layer in sized
    ]  # fmt: skip
    damage = [
        Point(index, sqnr, _title(layer), "worst" if sqnr in lowest else "taken", link=f"#layer-{index}")
        for index, layer, sqnr in told
    ]
    both = [
        Point(sqnr, layer.stored, _title(layer), "worst" if sqnr in lowest else "taken", link=f"#layer-{index}")
        for index, layer, sqnr in told
    ]
    for points, x, y, title in (
        (sizes, order, size, "Size by layer"), (damage, order, decibels, "Damage by layer"),
        (both, decibels, dataclasses.replace(size, label="size after"), "Size over damage"),
    ):  # fmt: skip
        yield plot(points, x, y, title, _LEGEND)


def _title(layer: Layer) -> str:
    weight, node = layer.weight, layer.node
    if weight is None:
        return f"{node.name}: {size_text(node.size)}, {node.reason}"
    told = f", {_decibels(weight.sqnr)}" if not math.isnan(weight.sqnr) else ""
    told += f", its product {_decibels(layer.product)}" if layer.product is not None else ""
    return f"{node.name}: {size_text(node.size)} -> {size_text(weight.stored)}{told}, {weight.scheme}"


def _layers(layers: Sequence[Layer]) -> list[Element]:
    columns = [
        Column("Node"), Column("Operator", choice=True), Column("Became", choice=True),
        Column("Method", choice=True, title="how the codes, or the blocks that stay, were found"),
        Column("Weights", True), Column("Before", True, title="size of the weight"),
        Column("After", True, title="the same with scales and zero points"),
        Column("SQNR", True, title="signal to quantization noise ratio of the weight: more is better"),
        Column("Product's SQNR", True, title="of what the layer computes, on data that its rounding has not seen"),
        Column("Gain", True, title="in what its rounding minimises, over plain rounding"),
        Column("Note", title="why it was left, or what more is to be known of it"),
    ]  # fmt: skip
    rows = []
    for layer in layers:
        node, weight = layer.node, layer.weight
        sized = node.size or None
        rows.append([
            Cell(node.name, code=True), Cell(node.op_type), Cell(node.reason if node.taken else "left"),
            Cell(weight.method if weight is not None else ""), _number(node.parameters or None, "{:,}".format),
            _number(sized, size_text), _number(sized and layer.stored, size_text),
            _number(weight.sqnr if weight is not None else None, _decibels), _number(layer.product, _decibels),
            _number(weight.gain or None if weight is not None else None, _decibels), Cell(layer.note),
        ])  # fmt: skip
    return [table("Layers", columns, rows, anchor="layer")] if rows else []


def _trail(trail: Sequence[Attempt]) -> Iterator[Element]:
    if not trail:
        return
    metrics = list(dict.fromkeys(attempt.metric for attempt in trail))
    yield from _side_by_side(_trail_plot(name, [each for each in trail if each.metric == name]) for name in metrics)
    columns = [
        Column("No.", True), Column("Recipe"), Column("Metric", choice=True), Column("Value", True),
        Column("Verdict", choice=True), Column("Size of weights", True), Column("Time", True),
    ]  # fmt: skip
    rows = [
        [
            Cell(str(index), index), Cell(each.recipe), Cell(each.metric),
            _number(each.value, "{:.5g}".format), Cell("accepted" if each.accepted else "refused"),
            _number(each.size, size_text), _number(each.seconds, "{:.1f} s".format),
        ]
        for index, each in enumerate(trail, 1)
    ]  # fmt: skip
    yield table("What was tried", columns, rows)


def _trail_plot(metric: str, trail: Sequence[Attempt]) -> Element | None:
    """The metric over the size where sizes tell trials apart, else over their order."""
    sizes = [attempt.size for attempt in trail if attempt.size is not None]
    by_size = len(sizes) == len(trail) and max(sizes) > _SPREAD * min(sizes)
    x = Axis("size of the weights", _bytes) if by_size else Axis("models in the order they were tried", ticks=False)
    points = [
        Point(
            (attempt.size or 0) if by_size else index, attempt.value, f"{attempt.recipe}: {attempt.value:.5g}",
            "accepted" if attempt.accepted else "refused",
        )
        for index, attempt in enumerate(trail)
    ]  # fmt: skip
    return plot(points, x, Axis(metric), metric, _LEGEND)


def _passes(report: Report) -> list[Element]:
    rows = [
        [Cell(name), Cell(node, code=True), Cell(reason)]
        for name, left in report.passes.items()
        for node, reason in left.items()
    ]
    columns = [Column("Pass", choice=True), Column("Node"), Column("Why")]
    return [table("Left by passes", columns, rows)] if rows else []


def _times(report: Report) -> list[Element]:
    whole = sum(report.seconds.values()) or 1.0
    rows = [
        [Cell(stage), _number(seconds, "{:.2f} s".format), _number(seconds / whole, _percent)]
        for stage, seconds in report.seconds.items()
    ]
    return [table("Time", [Column("Stage"), Column("Seconds", True), Column("Share", True)], rows)] if rows else []


def _number(value: float | None, text: Any) -> Cell:
    """A number by what it says, and nothing where it is not known; NaN is lower than all."""
    if value is None:
        return Cell("")
    return Cell("NaN", -math.inf) if math.isnan(value) else Cell(text(value), value)


def _bytes(value: float) -> str:
    return size_text(round(value))


def _decibels(value: float) -> str:
    return f"{value:.1f} dB" if math.isfinite(value) else "exact" if value > 0 else "nothing left"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_plain(item)}" for key, item in value.items())
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
