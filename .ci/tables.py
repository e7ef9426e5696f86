"""The parts of documents that are made from data: run as a program, it writes them anew.

A part stands between two comments, `<!-- NAME -->` and `<!-- /NAME -->`. Figures come from models/measured.toml; the
options of recipes, the catalogue and its tasks from what they are in the code that is installed.

    python .ci/tables.py [ROOT]     # writes the documents, and the plot of the headline figures
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FIGURES = "models/measured.toml"
PLOT = "models/headline.svg"
DOCUMENTS = ("README.md", "models/README.md", "optimizer/README.md")
HEADLINE = "headline"
"""The table that is drawn: by model, scheme and how many times as fast as float32, in these columns."""
_MODEL, _SCHEME, _TIMES = 0, 1, 5


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    columns = list(columns)
    lines = ["".join(f"| {cell} " if cell else "| " for cell in row) + "|" for row in (columns, *rows)]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])


def parts(figures: Mapping[str, Any]) -> dict[str, str]:
    """All parts by name; `figures` as `read` gives them."""
    made = {name: measured(one, figures["machines"]) for name, one in figures["tables"].items()}
    return {**made, "catalogue": catalogue(), "tasks": tasks(), "options": options()}


def measured(one: Mapping[str, Any], machines: Mapping[str, str]) -> str:
    """A table of figures, with how they came about."""
    machine = machines.get(one["machine"], one["machine"])
    how = f"Measured by {', '.join(one['commands'])}, on {machine}; {one['date']}."
    return f"{table(one['columns'], one['rows'])}\n\n{how}"


def catalogue() -> str:
    """The models of the catalogue."""
    from onnxpress import models

    entries = [models.entry(name) for name in models.names()]
    rows = [
        [f"`{each.name}`", each.description, f"`{each.package.name}`, {each.package.licence}", each.task or ""]
        for each in entries
    ]
    return table(["name", "what it is", "from the package", "judged by"], rows)


def tasks() -> str:
    """What models are judged by."""
    from onnxpress.models.tasks import TASKS
    from onnxpress.optimizer.evaluation.texts import TEXT_TASKS

    known = (*TASKS.values(), *TEXT_TASKS.values())
    rows = [[f"`{task.name}`", task.description, task.metric, task.needs] for task in known]
    return table(["task", "what it is", "metric", "needs"], rows)


def options() -> str:
    """The keys of a recipe, a table for all that the same schemes read."""
    from onnxpress.optimizer.settings.families import FAMILY_SETTINGS, readers_of
    from onnxpress.optimizer.settings.recipe import Recipe
    from onnxpress.optimizer.settings.setting import settings_of

    grouped: dict[str, list[list[str]]] = {}
    for key, what in settings_of(Recipe).items():
        titles = [f"*{family.title}*" for family in readers_of(key)]
        readers = "every scheme" if len(titles) == len(FAMILY_SETTINGS) else " and ".join(titles)
        grouped.setdefault(readers, []).append(_option(key, what, getattr(Recipe, key)))
    columns = ["key", "option", "default", "per node", "what it means"]
    return "\n\n".join(f"Read by {readers}:\n\n{table(columns, rows)}" for readers, rows in grouped.items())


def _option(key: str, what: Any, default: object) -> list[str]:
    option = f"--{key.replace('_', '-')}" if what.option is None else what.option
    written = "" if default is None or default == () else f"`{str(default).lower()}`"
    return [f"`{key}`", option and f"`{option}`", written, "yes" if what.per_node else "", what.help]


def replaced(text: str, made: Mapping[str, str]) -> str:
    """A document with its parts as they should be.

    Raises:
        KeyError: The document names a part that there is not.
    """
    part = re.compile(r"<!-- ([a-z0-9-]+) -->\n.*?<!-- /\1 -->", re.DOTALL)
    return part.sub(lambda found: f"<!-- {found[1]} -->\n{made[found[1]]}\n<!-- /{found[1]} -->", text)


def read(root: Path) -> dict[str, Any]:
    """The figures of a checkout."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads((root / FIGURES).read_text(encoding="utf-8"))


def bars(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is drawn: a name and a number with "x" behind it."""
    rows = figures["tables"][HEADLINE]["rows"]
    return [(f"{row[_MODEL]}, {row[_SCHEME].replace('`', '')}", row[_TIMES]) for row in rows]


def draw(figures: Mapping[str, Any], path: Path) -> None:
    """Draw the headline figures as an SVG whose text is text, and that is the same whenever it is made anew."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = bars(figures)[::-1]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": PLOT, "font.size": 10}):
        figure, axes = plt.subplots(figsize=(7.5, 2.4), layout="constrained")
        drawn = axes.barh([name for name, _ in shown], [float(times.removesuffix("x")) for _, times in shown])
        axes.bar_label(drawn, [times for _, times in shown], padding=3)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xlabel("times as fast as float32 in stock ONNX Runtime, two cores")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.1)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def main() -> None:
    """Write everything anew."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    figures = read(root)
    made = parts(figures)
    for name in DOCUMENTS:
        document = root / name
        document.write_text(replaced(document.read_text(encoding="utf-8"), made), encoding="utf-8")
    draw(figures, root / PLOT)


if __name__ == "__main__":
    main()
