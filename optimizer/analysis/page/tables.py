"""Tables of a page: sortable and filterable where scripts run, and plain tables elsewhere."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from xml.etree.ElementTree import Element

from .markup import element

_LONG = 500
"""Rows, beyond which a browser lays out those alone that are looked at."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What it says.
        key: What it is sorted by: the text, where it is no number.
        code: Whether it is a name out of the model.
    """

    text: str
    key: float | None = None
    code: bool = False


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its header.
        number: Whether it holds numbers.
        choice: Whether it holds few different texts, to choose rows by.
        title: What the header means.
    """

    name: str
    number: bool = False
    choice: bool = False
    title: str | None = None


def table(caption: str, columns: Sequence[Column], rows: Sequence[Sequence[Cell]], anchor: str = "") -> Element:
    """A table without empty columns; its roles are written out, because a narrow screen shows rows as blocks."""
    there = [index for index in range(len(columns)) if any(row[index].text for row in rows)]
    columns, rows = [columns[index] for index in there], [[row[index] for index in there] for row in rows]
    heads = [
        element(
            "th", column.name, scope="col", role="columnheader", title=column.title,
            class_="number" if column.number else None, data_choice=column.choice,
        )
        for column in columns
    ]  # fmt: skip
    lines = [
        element(
            "tr", *(_cell(column, cell, first=column is columns[0]) for column, cell in zip(columns, row, strict=True)),
            role="row", id=f"{anchor}-{index}" if anchor else None,
        )
        for index, row in enumerate(rows)
    ]  # fmt: skip
    return element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *heads, role="row"), role="rowgroup"),
        element("tbody", *lines, role="rowgroup"),
        role="table",
        class_="plain long" if len(lines) > _LONG else "plain",
    )


def _cell(column: Column, cell: Cell, *, first: bool) -> Element:
    content = element("code", cell.text) if cell.code else cell.text
    key = cell.key if cell.key is None or math.isfinite(cell.key) else "Infinity" if cell.key > 0 else "-Infinity"
    kinds = " ".join(filter(None, ("number" * column.number, "empty" * (not cell.text))))
    if first:
        return element("th", content, scope="row", role="rowheader", class_=kinds or None, data_key=key)
    return element("td", content, role="cell", class_=kinds or None, data_label=column.name, data_key=key)
