"""How far a model can be pruned: accuracy and speed by sparsity, for some blocks and criteria.

Models and scores are kept in a folder, so that a study that was interrupted, or is asked for more, goes on where it
was. Only times are taken anew, all in one run beside the float model.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..calibration import Calibration
from ..conversion.pipeline import optimize
from ..errors import OnnxpressError
from ..families.sparse.layer import share_of
from ..planning.result import Progress
from ..runtime.executor import executor_at
from ..settings.recipe import Recipe
from .bench import bench
from .study_requests import BLOCKS, CRITERIA, SPARSITIES, make_folder, sparse_recipes

if TYPE_CHECKING:
    from rich.console import Console

_SCORES = "scores.json"


@dataclasses.dataclass(frozen=True)
class Point:
    """One model of a study.

    Attributes:
        model: Its file; the name of the float model for that.
        block: Such as "4x4"; empty for the float model.
        criterion: By which blocks were chosen.
        sparsity: Share of blocks removed.
        scores: By task.
        milliseconds: Median of a run; 0 where it was not timed.
        ratio: The float model's over it.
    """

    model: str
    block: str
    criterion: str
    sparsity: float
    scores: Mapping[str, float]
    milliseconds: float = 0.0
    ratio: float = 0.0


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study found.

    Attributes:
        points: The float model first.
        metrics: Of each task.
        machine: Where it was timed; empty where it was not.
        setup: How.
    """

    points: list[Point]
    metrics: Mapping[str, str]
    machine: str
    setup: str

    def to_json(self) -> str:
        """Everything as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def print(self, console: Console) -> None:
        """A table for a person."""
        from rich.table import Table

        table = Table(title="\n".join(filter(None, (self.machine, self.setup))), title_justify="left", box=None)
        for column in ("block", "criterion", "sparsity"):
            table.add_column(column)
        for column in (*self.metrics, "ms", "speed-up"):
            table.add_column(column, justify="right")
        for point in self.points:
            table.add_row(
                point.block or "float32", point.criterion, f"{100 * point.sparsity:g} %" if point.block else "",
                *(f"{point.scores[task]:.4f}" for task in self.metrics),
                *((f"{point.milliseconds:.2f}", f"{point.ratio:.2f}x") if point.milliseconds else ("", "")),
            )  # fmt: skip
        console.print(table)


def study_sparsity(
    model: str,
    folder: str | Path,
    *,
    blocks: Sequence[str] = BLOCKS,
    sparsities: Sequence[float] = SPARSITIES,
    criteria: Sequence[str] = CRITERIA,
    tasks: Sequence[str] = (),
    dims: Mapping[str, int] | None = None,
    rounds: int = 5,
    calibration: Calibration | None = None,
    ray: str | None = None,
    progress: Progress = lambda _stage, _done, _total: None,
) -> Study:
    """Prune a model in many ways, and judge and time all of them.

    Args:
        model: A file, a folder or a name of the catalogue.
        folder: Where models and scores are kept.
        blocks: Blocks to try.
        sparsities: Sparsities to try.
        criteria: Criteria to try; "magnitude" reads no data.
        tasks: Names of tasks; the first that fits the model by default.
        dims: Sizes of symbolic dimensions to time with; None takes no times.
        rounds: Turns of each model.
        calibration: Data for the other criteria.
        ray: A Ray cluster that prunes and judges, as `optimize` takes it. All machines read the model, data and the
            folder by the same paths; times are taken here.
        progress: Told how the work goes on.

    Raises:
        UsageError: A setting is wrong, or the folder cannot be made.
        OnnxpressError: A model cannot be converted, judged or run.
    """
    wanted = sparse_recipes(blocks, sparsities, criteria)
    place = make_folder(folder)
    judge = _Judge(place / _SCORES, tasks)
    entries = [_Entry(model), *(_pruned(model, recipe, place) for recipe in wanted)]
    points = []
    with executor_at(ray) as executor:
        calls = ((model, entry, calibration, judge.missing(entry.model)) for entry in entries)
        found = executor.map(_made_and_judged, calls, len(entries))
        for done, (entry, scores) in enumerate(zip(entries, found, strict=True)):
            progress("models", done, len(wanted))
            points.append(entry.point(judge.keep(entry.model, scores)))
    progress("models", len(wanted), len(wanted))
    if dims is None:
        return Study(points, judge.metrics, "", "")
    timed = bench([point.model for point in points], dims=dims, rounds=rounds, progress=progress)
    points = [
        dataclasses.replace(point, milliseconds=1e3 * timing.median, ratio=timing.ratio)
        for point, timing in zip(points, timed.timings, strict=True)
    ]
    return Study(points, judge.metrics, timed.machine, timed.setup)


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A model to judge: its file or name, and the recipe that makes it of the float model, which has none itself."""

    model: str
    recipe: Recipe | None = None

    def point(self, scores: Mapping[str, float]) -> Point:
        """What the study tells of it."""
        if self.recipe is None:
            return Point(self.model, "", "", 0.0, scores)
        return Point(self.model, self.recipe.block or "", self.recipe.criterion or "", share_of(self.recipe), scores)


def _pruned(model: str, recipe: Recipe, folder: Path) -> _Entry:
    name = f"{Path(model).stem}.{recipe.block}.{recipe.criterion}.{100 * share_of(recipe):g}.onnx"
    return _Entry(str(folder / name), recipe)


_Scores = dict[str | None, tuple[str, str, float]]
"""By a task as it was asked for: its name, metric and value."""


def _made_and_judged(
    model: str, entry: _Entry, calibration: Calibration | None, tasks: Sequence[str | None]
) -> _Scores:
    """Scores of an entry, which is made of the float model unless it is there."""
    from .evaluate import evaluate

    recipe = entry.recipe
    if recipe is not None and not Path(entry.model).exists():
        optimize(model, recipe, entry.model, calibration=None if recipe.criterion == "magnitude" else calibration)
    results = {task: evaluate(entry.model, task) for task in tasks}
    return {task: (result.task, result.metric, result.value) for task, result in results.items()}


class _Judge:
    """Scores of models by task, kept in a file.

    Attributes:
        metrics: Of the tasks that were judged by.
    """

    def __init__(self, path: Path, tasks: Sequence[str]) -> None:
        self._path, self._tasks = path, tasks
        self.metrics: dict[str, str] = {}
        try:
            known = json.loads(path.read_text("utf-8")) if path.exists() else {}
            self._known = {key: (str(task), str(metric), float(value)) for key, (task, metric, value) in known.items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise OnnxpressError(f"{path}: not the scores of a study; remove it: {error}") from error

    def missing(self, model: str) -> list[str | None]:
        """The tasks by which a model is still to be judged."""
        return [task for task in self._tasks or (None,) if _key(model, task) not in self._known]

    def keep(self, model: str, scores: _Scores) -> dict[str, float]:
        """Scores of a model by all tasks, with those that were missing."""
        if scores:
            self._known |= {_key(model, task): score for task, score in scores.items()}
            self._path.write_text(json.dumps(self._known, indent=1), "utf-8")
        told = [self._known[_key(model, task)] for task in self._tasks or (None,)]
        self.metrics |= {name: metric for name, metric, _ in told}
        return {name: value for name, _, value in told}


def _key(model: str, task: str | None) -> str:
    return f"{Path(model).name} {task or ''}"
