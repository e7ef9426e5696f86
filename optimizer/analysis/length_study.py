"""What an encoder loses and gains the fewer tokens its layers hand on: the best lengths that a search found.

The front, of which no lengths are both cheaper and better than others, is searched once; a point of it that meets a
bound is written as a recipe, which makes its model without a search.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..calibration import Calibration
from ..conversion.pipeline import optimize
from ..conversion.recipe_file import write_recipe
from ..evaluation.metrics import loss_text
from ..evaluation.texts import KL
from ..families.length_search import text_of
from ..planning.length_evolution import Found, within
from ..planning.result import Progress
from ..planning.token_lengths import lengths_text
from ..settings.recipe import Recipe
from .study_requests import make_folder

if TYPE_CHECKING:
    from rich.console import Console


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The cheapest lengths within a bound.

    Attributes:
        most: What may be lost.
        found: The lengths; None where all lose more.
        recipe: Its file; empty where there is none.
    """

    most: float
    found: Found | None
    recipe: str


@dataclasses.dataclass(frozen=True)
class LengthStudy:
    """What a study found.

    Attributes:
        model: The float model.
        metric: By which lengths were judged.
        float32: Of the float model.
        front: The best lengths, the dearest first; losses are of the metric, costs shares of the time of all layers.
        chosen: One a bound.
        in_nats: Whether losses are nats per token, and not shares.
    """

    model: str
    metric: str
    float32: float
    front: list[Found]
    chosen: list[Chosen]
    in_nats: bool

    def to_json(self) -> str:
        """Everything as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def print(self, console: Console) -> None:
        """Tables for a person."""
        from rich.table import Table

        table = Table(title=f"{self.metric} of float32: {self.float32:.4f}", title_justify="left", box=None)
        table.add_column("each layer hands on")
        for column in ("time of the layers", "lost", "recipe"):
            table.add_column(column, justify="right")
        recipes: dict[tuple[float, ...], list[str]] = {}
        for each in self.chosen:
            if each.found is not None:
                recipes.setdefault(each.found.lengths, []).append(each.recipe)
        for point in self.front:
            table.add_row(
                lengths_text(point.lengths), f"{100 * point.cost:.1f} %", self._lost(point.loss),
                " ".join(recipes.get(point.lengths, [])),
            )  # fmt: skip
        console.print(table)
        for each in self.chosen:
            if each.found is None:
                console.print(f"none loses {self._lost(each.most)} or less")

    def _lost(self, loss: float) -> str:
        return loss_text(loss, in_nats=self.in_nats)


def study_lengths(
    model: str,
    folder: str | Path,
    recipe: Recipe,
    bounds: Sequence[float],
    *,
    checkpoint: str | Path | None = None,
    ray: str | None = None,
    progress: Progress = lambda _stage, _done, _total: None,
) -> LengthStudy:
    """Search the lengths of a model, and write a recipe for each bound.

    Args:
        model: A file, a folder or a name of the catalogue.
        folder: Where the recipes go, and the model of the loosest bound.
        recipe: With lengths "search", a metric, and the loosest bound.
        bounds: What may be lost of the metric, in its unit.
        checkpoint: A folder from which an interrupted study goes on.
        ray: A Ray cluster that judges lengths, as `optimize` takes it.
        progress: Told how the work goes on.

    Raises:
        UsageError: The folder cannot be made, or that to go on from is of another run.
        OnnxpressError: The model cannot be converted or judged, or loses more than the loosest bound with all tokens.
    """
    place, stem = make_folder(folder), Path(model).stem
    kept = Calibration(checkpoint=checkpoint)
    report = optimize(model, recipe, place / f"{stem}.lengths.onnx", calibration=kept, ray=ray, progress=progress)
    front = [Found(tuple(each["lengths"]), each["cost"], each["loss"]) for each in report.details["length_search"]]
    in_nats = recipe.judged_by == KL
    chosen = []
    for most in sorted(set(bounds)):
        best = next(iter(within(front, most)), None)
        path = place / f"{stem}.lengths-{f'{most:g}nats' if in_nats else f'{100 * most:g}%'}.toml"
        if best is not None:
            write_recipe({**report.recipe, "lengths": text_of(best.lengths)}, path)
        chosen.append(Chosen(most, best, "" if best is None else str(path)))
    accuracy = report.accuracy
    assert accuracy is not None
    return LengthStudy(model, accuracy.metric, accuracy.float32, front, chosen, in_nats)
