"""What is wrong with a request for a study whatever the models hold, told before anything slow is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..calibration import Calibration
from ..calibration.files import check_source
from ..conversion.request import check_request
from ..errors import OnnxpressError, UsageError, option
from ..evaluation.names import check_metric_name, lacks_text
from ..evaluation.texts import PERPLEXITY, TEXT_TASKS, Text
from ..settings.lengths import SEARCH
from ..settings.origin import Origin
from ..settings.recipe import Recipe
from ..sources import check_there

SCHEMES = ("int8-static", "fp8-e5m2-static", "fp8-static", "fp8-e3m4-static", "fp6", "fp4")
"""Those that are studied where nobody says."""

BLOCKS, SPARSITIES, CRITERIA = ("4x4",), (0.5, 0.6, 0.7, 0.8, 0.9), ("obs", "magnitude")
"""What is tried where nobody says."""

DROPS = ("0.5%", "1%", "3%")
"""What may be lost where nobody says, a recipe each."""

MAX_KL = 0.02
"""Nats per token that a model may lose where nobody says."""


def check_formats(
    models: Sequence[str],
    schemes: Sequence[str],
    metrics: Mapping[str, str | None],
    data: Mapping[str, str],
    bounds: tuple[float, float],
    text: Text | None,
) -> list[Recipe]:
    """The recipe of each scheme, when all is well with a request for `study_formats`.

    Args:
        models: Files, folders or names of the catalogue.
        schemes: Of recipes.
        metrics: Of each model.
        data: Of some models.
        bounds: Of losses that are shares, and of those in nats.
        text: What the metrics perplexity and kl read.

    Raises:
        UsageError: A scheme, a model, a metric, data or a bound is wrong.
    """
    for what, names in (("model", models), ("scheme", schemes)):
        if not names or len(set(names)) < len(names):
            raise UsageError(f"{what}s are {', '.join(names) or 'none'}; name each {what} once")
    max_drop, max_kl = bounds
    if not 0 <= max_drop <= 1:
        raise UsageError(f"{option('max-drop')} is {max_drop}, must be a share from 0 to 1")
    if not max_kl > 0:
        raise UsageError(f"{option('max-kl')} is {max_kl}, must be nats per token, above 0")
    recipes = [Recipe.from_mapping({"scheme": scheme}, Origin("schemes")) for scheme in schemes]
    if text is not None and not any(metric in TEXT_TASKS for metric in metrics.values()):
        raise UsageError(f"{option('text')} is read by {', '.join(TEXT_TASKS)} alone, by which no model is judged")
    for metric in metrics.values():
        if metric is not None:
            check_metric_name(metric)
            if metric in TEXT_TASKS and text is None:
                raise lacks_text(metric)
    try:
        check_there(*models)
        for source in data.values():
            check_source(source)
    except OnnxpressError as error:
        raise UsageError(str(error)) from error
    return recipes


def metrics_of(models: Sequence[str], metrics: Mapping[str, str] | None, text: Text | None) -> dict[str, str | None]:
    """The metric of each model: where none is named perplexity if there is a text, else None, the cosine of outputs."""
    return {name: (metrics or {}).get(name, None if text is None else PERPLEXITY) for name in models}


def sparse_recipes(blocks: Sequence[str], sparsities: Sequence[float], criteria: Sequence[str]) -> list[Recipe]:
    """A recipe of `study_sparsity` for each criterion, block and sparsity.

    Raises:
        UsageError: One is none.
    """
    origin = Origin("study-sparsity", {key: f"--{key}" for key in ("block", "criterion", "sparsity")})
    return [
        Recipe.from_mapping({"scheme": "sparse", "block": block, "criterion": criterion, "sparsity": sparsity}, origin)
        for criterion in criteria for block in blocks for sparsity in sparsities
    ]  # fmt: skip


def length_recipe(
    metric: str, bounds: Sequence[float], text: str | None, window: int | None, checkpoint: str | None = None, *,
    fuse_layers: bool,
) -> Recipe:  # fmt: skip
    """The recipe of `study_lengths`, whose bound is the loosest.

    Args:
        metric: A task, "embeddings", or "module:function".
        bounds: Shares of the metric that may be lost, one at least.
        text: What embeddings are of.
        window: Most tokens of a line of it.
        checkpoint: A folder from which an interrupted study goes on.
        fuse_layers: Whether layers become one operator each.

    Raises:
        UsageError: There is no such metric, or the settings do not go with it.
    """
    given = {"metric": metric, "text": text, "window": window, "max_drop": max(bounds)}
    values = {"scheme": "int8-dynamic", "lengths": SEARCH, "fuse_layers": fuse_layers, **given}
    options = {key: f"--{key.replace('_', '-')}" for key in (*given, "fuse_layers")}
    chosen = Recipe.from_mapping(
        {key: value for key, value in values.items() if value is not None}, Origin("study-lengths", options)
    )
    check_request(chosen, Calibration(checkpoint=checkpoint), None)
    return chosen


def make_folder(folder: str | Path) -> Path:
    """The folder of a study, made if it is not there.

    Raises:
        UsageError: It cannot be made.
    """
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot make the folder: {error.strerror}") from error
    return place
