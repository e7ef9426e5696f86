"""Plots of a page as SVG: points with the name of what they stand for, in the colours of the page."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from xml.etree.ElementTree import Element

from .markup import element

_WIDTH, _HEIGHT = 440, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 24, 12, 40
_TICKS = 5
_BEFORE = "before"


@dataclasses.dataclass(frozen=True)
class Point:
    """What is drawn at a place.

    Attributes:
        x: Along the first axis.
        y: Along the second.
        title: What it is.
        kind: Class of its mark, a key of the legend.
        low: Another place on the second axis, what it was "before", from which a line leads here.
        link: Where it leads, or nothing.
    """

    x: float
    y: float
    title: str
    kind: str
    low: float | None = None
    link: str = ""


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        label: What it is, with the unit.
        text: A tick for a person.
        log: Whether equal steps are equal factors.
        ticks: Whether it has any.
    """

    label: str
    text: Callable[[float], str] = lambda value: f"{value:g}"
    log: bool = False
    ticks: bool = True


def plot(points: Sequence[Point], x: Axis, y: Axis, title: str, legend: dict[str, str]) -> Element | None:
    """A plot with its title and legend; None where there is nothing to draw.

    Args:
        points: What to draw; of a logarithmic axis what is above 0.
        x: The first axis.
        y: The second.
        title: Of the plot.
        legend: What each kind of mark means; kinds that are not drawn are left out.
    """
    points = [each for each in points if _can_be_drawn(each, x, y)]
    if not points:
        return None
    across = _Scale([each.x for each in points], x, _LEFT, _WIDTH - _RIGHT)
    ends = [end for each in points for end in (each.y, each.low) if end is not None]
    along = _Scale(ends, y, _HEIGHT - _BOTTOM, _TOP)
    marks = [_mark(each, across, along) for each in points]
    drawing = element(
        "svg", *_frame(x, y, across, along), *marks,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img" if not any(each.link for each in points) else "group",
        aria_label=f"{title}: {y.label} over {x.label}; the table has the numbers",
    )  # fmt: skip
    drawn = {each.kind for each in points} | {_BEFORE for each in points if each.low is not None}
    listed = [_key(kind, text) for kind, text in legend.items() if kind in drawn]
    caption = element("figcaption", element("strong", title), *(listed if len(listed) > 1 else []))
    return element("figure", caption, drawing)


class _Scale:
    """From numbers to places."""

    def __init__(self, values: Sequence[float], axis: Axis, begin: float, end: float) -> None:
        self._log, self._begin, self._end = axis.log, begin, end
        low, high = min(map(self._of, values)), max(map(self._of, values))
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
        self._low, self._high = low - margin, high + margin

    def _of(self, value: float) -> float:
        return math.log10(value) if self._log else value

    def __call__(self, value: float) -> float:
        share = (self._of(value) - self._low) / (self._high - self._low)
        return round(self._begin + share * (self._end - self._begin), 1)

    def ticks(self) -> list[float]:
        """Round numbers within."""
        from matplotlib.ticker import MaxNLocator

        if self._log and self._high - self._low > 1:
            found = [10.0**power for power in range(math.ceil(self._low), math.floor(self._high) + 1)]
            return found[:: math.ceil(len(found) / _TICKS)]
        low, high = (10**self._low, 10**self._high) if self._log else (self._low, self._high)
        return [float(tick) for tick in MaxNLocator(_TICKS).tick_values(low, high) if low <= tick <= high]


def _can_be_drawn(point: Point, x: Axis, y: Axis) -> bool:
    places = [(point.x, x), (point.y, y), *([(point.low, y)] if point.low is not None else [])]
    return all(math.isfinite(value) and (value > 0 or not axis.log) for value, axis in places)


def _frame(x: Axis, y: Axis, across: _Scale, along: _Scale) -> list[Element]:
    """Lines and texts of both axes."""
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    made = []
    for tick in along.ticks() if y.ticks else ():
        made.append(element("line", class_="grid", x1=_LEFT, x2=right, y1=along(tick), y2=along(tick)))
        made.append(element("text", y.text(tick), x=_LEFT - 6, y=along(tick) + 4, text_anchor="end"))
    for tick in across.ticks() if x.ticks else ():
        made.append(element("line", class_="grid", x1=across(tick), x2=across(tick), y1=_TOP, y2=bottom))
        made.append(element("text", x.text(tick), x=across(tick), y=bottom + 16, text_anchor="middle"))
    made.append(element("text", x.label, class_="label", x=(_LEFT + right) / 2, y=_HEIGHT - 6, text_anchor="middle"))
    middle = (_TOP + bottom) / 2
    turned = f"rotate(-90 12 {middle:g})"
    made.append(element("text", y.label, class_="label", x=12, y=middle, transform=turned, text_anchor="middle"))
    return made


def _mark(point: Point, across: _Scale, along: _Scale) -> Element:
    content = [element("title", point.title)]
    x, y = across(point.x), along(point.y)
    if point.low is not None:
        low = along(point.low)
        content += [
            element("line", x1=x, x2=x, y1=low, y2=y),
            element("circle", class_=_BEFORE, cx=x, cy=low, r=2.5),
        ]
    content.append(element("circle", cx=x, cy=y, r=3))
    if point.link:
        return element("a", *content, class_=point.kind, href=point.link, tabindex=-1)
    return element("g", *content, class_=point.kind)


def _key(kind: str, text: str) -> Element:
    sign = element("svg", element("circle", cx=5, cy=5, r=4), class_=kind, viewBox="0 0 10 10", aria_hidden="true")
    return element("span", sign, text, class_="key")
