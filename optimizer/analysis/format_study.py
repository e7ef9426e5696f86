"""Which formats models bear: what each loses of a metric by scheme, and how many of them each scheme serves.

The tables of "Efficient Post-training Quantization with FP8 Formats" (Shen et al., arXiv:2309.14592), for any models.
With the metric m of the float model and m' of a converted one the loss is relative,

    d = (m - m') / |m|

and the model passes where d <= max_drop, there 1 %. Of a perplexity, of which less is better, d has the other sign, and
of kl it is the value itself, in nats per token. The coverage of a scheme is the share of the models that pass. A model
that a scheme refuses does not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..calibration import Calibration
from ..calibration.files import TOKENIZER
from ..conversion.pipeline import optimize
from ..errors import OnnxpressError, UsageError
from ..evaluation.metrics import COSINE, Metric, check_metric, choose_metric, loss_text
from ..evaluation.texts import TEXT_TASKS, Text, TextMetric
from ..families.demands import Need, demands_of
from ..model_io import storage
from ..planning.report import size_text
from ..planning.result import Progress
from ..runtime.executor import Shared, executor_at
from ..runtime.feeds import Feeds, random_feeds
from ..runtime.session import open_session, session_options, uses_our_ops
from ..runtime.token_limits import token_limits
from ..settings.recipe import Recipe
from ..sources import resolve
from .compare import DEFAULT_DIMS
from .study_requests import MAX_KL, SCHEMES, check_formats, make_folder, metrics_of

if TYPE_CHECKING:
    from rich.console import Console

FLOAT = "float32"
"""What stands for the scheme of the float model."""

_SAMPLES = 16  # on which outputs are compared
_SEEDS = 4  # as many random inputs, where there is no data


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One model by one scheme.

    Attributes:
        model: As the caller named it.
        scheme: Of the recipe; "float32" for the model itself.
        metric: By which it is judged.
        value: The metric, None where the scheme failed.
        loss: Relative to the float model, negative where it is better; infinite where the metric is NaN.
        passed: Whether the loss is within the bound.
        in_nats: Whether the loss is in nats per token.
        size: Bytes of the file, external data included.
        reason: Why the scheme failed.
    """

    model: str
    scheme: str
    metric: str
    value: float | None = None
    loss: float | None = None
    passed: bool = False
    size: int | None = None
    reason: str = ""
    in_nats: bool = False


@dataclasses.dataclass(frozen=True)
class FormatStudy:
    """What a study found.

    Attributes:
        verdicts: Model by model, each first as float32.
        max_drop: The bound on the loss.
        max_kl: The same of kl.
    """

    verdicts: list[Verdict]
    max_drop: float
    max_kl: float = MAX_KL

    def on_one_scale(self, verdict: Verdict) -> float | None:
        """The loss, of kl as many times `max_drop` as it is `max_kl`; None where there is none."""
        if verdict.loss is None or not verdict.in_nats:
            return verdict.loss
        return verdict.loss / self.max_kl * self.max_drop

    @property
    def coverage(self) -> dict[str, float]:
        """Share of the models that pass, by scheme."""
        passed: dict[str, list[bool]] = {}
        for verdict in self.verdicts:
            if verdict.scheme != FLOAT:
                passed.setdefault(verdict.scheme, []).append(verdict.passed)
        return {scheme: sum(each) / len(each) for scheme, each in passed.items()}

    def _failed(self) -> dict[str, dict[str, list[str]]]:
        """Schemes by model by the reason why there is no verdict, which many may share."""
        found: dict[str, dict[str, list[str]]] = {}
        for verdict in self.verdicts:
            if verdict.reason:
                found.setdefault(verdict.reason, {}).setdefault(verdict.model, []).append(verdict.scheme)
        return found

    def to_json(self) -> str:
        """Everything as JSON; what is infinite or NaN becomes null."""
        values = dataclasses.asdict(self)
        for verdict in values["verdicts"]:
            verdict.update({k: None for k, v in verdict.items() if isinstance(v, float) and not math.isfinite(v)})
        return json.dumps({**values, "coverage": self.coverage}, indent=2)

    def print(self, console: Console) -> None:
        """Two tables for a person."""
        from rich.table import Table

        table = Table(box=None)
        for column in ("model", "scheme", "metric", "value", "loss", "passes", "size"):
            table.add_column(column, justify="right" if column in ("value", "loss", "size") else "left")
        for verdict in self.verdicts:
            table.add_row(*_cells(verdict))
        console.print(table)
        for reason, failed in self._failed().items():
            listed = "; ".join(f"{model} as {', '.join(schemes)}" for model, schemes in failed.items())
            console.print(f"cannot be judged: {listed}: {reason}", soft_wrap=True)
        nats = f", or {self.max_kl:g} nats per token" if any(verdict.in_nats for verdict in self.verdicts) else ""
        console.print(f"coverage: the models that lose {100 * self.max_drop:g} % at most{nats}")
        coverage = Table(box=None)
        coverage.add_column("scheme")
        coverage.add_column("models", justify="right")
        coverage.add_column("share", justify="right")
        models = len({verdict.model for verdict in self.verdicts})
        for scheme, share in self.coverage.items():
            coverage.add_row(scheme, f"{round(share * models)} of {models}", f"{100 * share:.1f} %")
        console.print(coverage)


def _cells(verdict: Verdict) -> tuple[str, ...]:
    value = "" if verdict.value is None else f"{verdict.value:.5f}"
    told = verdict.loss is not None and verdict.scheme != FLOAT
    loss = loss_text(verdict.loss or 0.0, in_nats=verdict.in_nats) if told else ""
    passes = "" if verdict.scheme == FLOAT else "yes" if verdict.passed else "no"
    size = "" if verdict.size is None else size_text(verdict.size)
    return verdict.model, verdict.scheme, verdict.metric, value, loss, passes, size


def study_formats(
    models: Sequence[str],
    schemes: Sequence[str] = SCHEMES,
    *,
    metrics: Mapping[str, str] | None = None,
    data: Mapping[str, str] | None = None,
    max_drop: float = 0.01,
    max_kl: float = MAX_KL,
    text: Text | None = None,
    threads: int | None = None,
    folder: str | Path | None = None,
    ray: str | None = None,
    progress: Progress = lambda _stage, _done, _total: None,
) -> FormatStudy:
    """Convert models by schemes, and judge them.

    Args:
        models: Float models: files, folders or names of the catalogue.
        schemes: Of recipes, all else by default.
        metrics: By model what `choose_metric` takes; for others it is the cosine of outputs, on 16 samples of the
            model's data, or on random inputs where there is none.
        data: By model a file or "module:function" to calibrate with; a model of the catalogue has its own.
        max_drop: The largest loss with which a model passes.
        max_kl: The same of the metric kl, in nats per token.
        text: What the metrics perplexity, kl and embeddings read; with one, models without a metric are judged by
            perplexity.
        threads: That run the models; None leaves the choice to ONNX Runtime.
        folder: Where converted models are kept, and found again if model, data and recipe are the same.
        ray: A Ray cluster that converts and judges, a scheme of a model at a time, as `optimize` takes it. All machines
            read models, data and the folder by the same paths.
        progress: Told how the work goes on.

    Returns:
        A verdict a model and scheme; what cannot be converted or judged has failed, with the reason.

    Raises:
        UsageError: Nothing has begun: a scheme, a model, a metric, data or the folder is wrong.
    """
    judged_by = metrics_of(models, metrics, text)
    recipes = check_formats(models, schemes, judged_by, data or {}, (max_drop, max_kl), text)
    if folder is not None:
        storage.check_target(make_folder(folder) / "model.onnx")
    workloads = [_workload(name, judged_by[name], (data or {}).get(name), text) for name in models]
    bounds = {False: max_drop, True: max_kl}
    asked = [(workload, recipe) for workload in workloads for recipe in (None, *recipes)]
    verdicts: list[Verdict] = []
    with executor_at(ray) as executor:

        def calls() -> Iterator[tuple[Any, ...]]:
            for workload in workloads:
                judge = executor.share_made((workload, threads), _judge_of)
                for recipe in (None, *recipes):
                    yield judge, workload, recipe, bounds, threads, folder

        found = executor.map(_verdict, calls(), len(asked))
        for at, ((workload, _), verdict) in enumerate(zip(asked, found, strict=True)):
            progress(workload.name, at % (len(recipes) + 1) + 1, len(recipes) + 1)
            verdicts.append(verdict)
    return FormatStudy(verdicts, max_drop, max_kl)


@dataclasses.dataclass(frozen=True)
class _Workload:
    """A model, what judges it and what it is calibrated with."""

    name: str
    path: Path
    metric: str | None
    data: str | None

    @property
    def calibration(self) -> Calibration:
        return Calibration(self.data)

    def feeds(self) -> list[Feeds]:
        """Inputs to compare outputs on."""
        named = None if Path(self.name).exists() else self.name
        if self.calibration.is_there(named):
            opened = self.calibration.open(storage.load(self.path), named, self.path)
            return list(islice(opened, _SAMPLES))  # type: ignore[arg-type]
        inputs = open_session(self.path, session_options(), self.name).get_inputs()
        limits = token_limits(storage.load(self.path))
        return [random_feeds(inputs, DEFAULT_DIMS, seed, limits=limits) for seed in range(_SEEDS)]

    def target(self, recipe: Recipe, place: Path) -> Path:
        """Where its converted form is: a name that is another one when the model, the data or the recipe is."""
        files = [path for path in (self.path, Path(self.data or "")) if path.is_file()]
        stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        told = json.dumps([stats, self.data, recipe.to_mapping()], sort_keys=True)
        stem = self.path.stem if Path(self.name).is_file() else Path(self.name).resolve().name
        return place / f"{stem}.{recipe.scheme}.{hashlib.sha256(told.encode()).hexdigest()[:8]}.onnx"


def _workload(name: str, metric: str | None, data: str | None, text: Text | None) -> _Workload:
    """A model that can be read, with a metric that fits and data that begins well."""
    try:
        path = resolve(name)
        if metric in TEXT_TASKS and text is not None:
            tokenizer = text.tokenizer or path.with_name(TOKENIZER)
            metric = TextMetric(metric, dataclasses.replace(text, tokenizer=tokenizer))
        workload = _Workload(name, path, metric, data)
        model = storage.load(workload.path)
        if metric is not None:
            check_metric(metric, model, name)
        if data is not None:
            next(iter(workload.calibration.open(model, None, workload.path)))
    except OnnxpressError as error:
        raise UsageError(str(error)) from error
    return workload


@contextlib.contextmanager
def _place(folder: str | Path | None) -> Iterator[Path]:
    """The folder, or one for a while."""
    if folder is not None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="onnxpress-") as temporary:
        yield Path(temporary)


def _judge_of(asked: tuple[_Workload, int | None]) -> Metric | str:
    """What judges a model by each scheme; why nothing can."""
    workload, threads = asked
    try:
        feeds = workload.feeds() if workload.metric is None else []
        return choose_metric(workload.metric, workload.path, feeds, workload.name, threads)
    except OnnxpressError as error:
        return f"as float32: {error}"


def _verdict(
    judge: Shared[Metric | str], workload: _Workload, recipe: Recipe | None, bounds: Mapping[bool, float],
    threads: int | None, folder: str | Path | None,
) -> Verdict:  # fmt: skip
    """Of a model by the scheme of a recipe, or in float.

    Args:
        judge: Its metric.
        workload: The model.
        recipe: Of the scheme; None for float.
        bounds: Of losses that are shares, and of those in nats.
        threads: That run the model.
        folder: Where it is kept; None for nowhere.
    """
    name, metric = workload.name, judge.get()
    scheme = FLOAT if recipe is None else recipe.scheme
    if isinstance(metric, str):
        return Verdict(name, scheme, workload.metric or COSINE, reason=metric)
    told = functools.partial(Verdict, name, scheme, metric.name, in_nats=metric.in_nats)
    if recipe is None:
        size = storage.size_on_disk(workload.path, storage.load(workload.path))
        return told(metric.reference, 0.0, passed=True, size=size)
    try:
        with _place(folder) as place:
            value, size = _judge(workload, recipe, metric, threads, place)
    except OnnxpressError as error:
        return told(reason=str(error))
    loss = metric.loss(value)
    return told(value, loss, passed=loss <= bounds[metric.in_nats], size=size)


def _judge(workload: _Workload, recipe: Recipe, metric: Metric, threads: int | None, place: Path) -> tuple[float, int]:
    """Metric and size of the converted model, which is made unless it is there."""
    target = workload.target(recipe, place)
    if not target.exists():
        calibration = workload.calibration if demands_of(recipe.family).need(recipe, False) is not Need.NONE else None
        optimize(workload.name, recipe, target, calibration=calibration)
    model = storage.load(target)
    options = session_options(threads=threads, ours=uses_our_ops(model))
    session = open_session(target, options, f"{workload.name} as {recipe.scheme}")
    return metric.judge(session), storage.size_on_disk(target, model)
