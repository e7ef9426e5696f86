"""What is wrong with a request whatever the model is, told before the model is read and anything slow is imported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..calibration import Calibration
from ..calibration.files import TOKENIZER
from ..errors import OnnxpressError, SettingsError, UsageError, option
from ..evaluation.names import UserMetric, check_metric_name
from ..evaluation.texts import TEXT_TASKS, Text, TextMetric
from ..families.demands import Need, demands_of
from ..runtime.ray_address import check_ray
from ..settings.recipe import Recipe
from ..settings.setting import settings_of


def check_request(recipe: Recipe, calibration: Calibration, name: str | None, ray: str | None = None) -> None:
    """Refuse data that nobody reads, or that is lacking, and a metric that is none.

    Args:
        recipe: What to do.
        calibration: What was given to learn from.
        name: Of the model in the catalogue, which has data of its own; None of another.
        ray: Address of a cluster that is to take a part of the work.

    Raises:
        SettingError, SettingsError: Settings, by key, with which the request cannot be met with any model.
        UsageError: It cannot be met otherwise: there is no data, or no such metric.
        OnnxpressError: A file that it names cannot be read.
    """
    metric = recipe.judged_by
    if metric is not None:
        check_metric_name(metric)
    if metric in TEXT_TASKS and recipe.text is None and calibration.text is None:
        raise UsageError(f"{metric} needs a text: give {option('text')}, or a text as {option('calibration')}")
    demands = demands_of(recipe.family)
    need, is_there = demands.need(recipe, calibration.is_given), calibration.is_there(name)
    if calibration.checkpoint is not None and not demands.goes_on(recipe):
        problem = f": scheme {recipe.scheme} does not go on after an interruption with these settings"
        raise SettingsError(["checkpoint"], problem, _guilty(recipe, demands.goes_on))
    if calibration.checkpoint is not None and need is Need.NONE and demands.reads_data(recipe):
        problem = f": without data there is nothing to keep: give {option('calibration')} or {option('method')}"
        raise SettingsError(["checkpoint"], problem)
    if ray is not None:
        check_ray(ray)
        if not demands.spreads(recipe, need):
            problem = f": scheme {recipe.scheme} has no work for other machines with these settings"
            raise SettingsError(["ray"], problem)
    unread = [key for key, value in vars(calibration).items() if value is not None and key != "checkpoint"]
    if need is Need.NONE and unread:
        problem = f": scheme {recipe.scheme} reads no calibration data with these settings"
        raise SettingsError(unread, problem, _guilty(recipe, demands.reads_data))
    if need is Need.REQUIRED or (need is Need.WELCOME and is_there):
        calibration.check(name, or_statistics=demands.takes_statistics)
        if calibration.statistics is not None and not demands.takes_statistics:
            problem = f": scheme {recipe.scheme} learns from data: give {option('calibration')}"
            raise SettingsError(["statistics"], problem)
    demands.check(recipe, is_there, calibration.statistics is not None)
    calibration.check_files()
    if recipe.text is not None:
        Text(recipe.text).check_files()


def _guilty(recipe: Recipe, is_met: Callable[[Recipe], bool]) -> list[str]:
    """The settings with whose default a request would be met."""
    defaults = {key: getattr(Recipe, key) for key in settings_of(Recipe)}
    others = {key: recipe.decided(**{key: default}) for key, default in defaults.items() if key != "scheme"}
    return [key for key, other in others.items() if is_met(other)]


def check_observation(model: str | Path, data: Calibration) -> None:
    """Refuse data that `calibrate` could not observe a model on, whatever the model is.

    Args:
        model: A file, a folder or a name of the catalogue.
        data: Where from.

    Raises:
        UsageError: There is none, or what is said of images means nothing.
        OnnxpressError: There is no such file.
    """
    if data.data is None and Path(model).exists():
        raise UsageError(
            f"{option('data')} is missing: say what to run the model on; only models of the catalogue bring data"
        )
    data.check_files()


def check_merge(files: Sequence[str | Path]) -> None:
    """Refuse files of statistics that cannot be merged, whatever they hold.

    Raises:
        UsageError: There are fewer than two, or one is named twice.
        OnnxpressError: One is not there.
    """
    if len(files) < 2:
        raise UsageError("there is nothing to merge: name at least two files of statistics")
    for index, file in enumerate(files):
        if Path(file).resolve() in [Path(other).resolve() for other in files[:index]]:
            raise UsageError(f"{file}: named twice, so its data would count double; name each file once")
        if not Path(file).exists():
            raise OnnxpressError(f"{file}: no such file")


def bound_metric(recipe: Recipe, calibration: Calibration, path: Path | None) -> UserMetric | None:
    """The metric of a recipe; one that reads a text, with that of the recipe or else of the calibration.

    Args:
        recipe: What to do.
        calibration: What was given to learn from, which names the tokenizer, too.
        path: Of the model, beside which a tokenizer may lie.
    """
    metric, path_of_text = recipe.judged_by, recipe.text or calibration.text
    if not isinstance(metric, str) or metric not in TEXT_TASKS or path_of_text is None:
        return metric
    tokenizer = calibration.tokenizer or (None if path is None else path.with_name(TOKENIZER))
    return TextMetric(metric, Text(path_of_text, tokenizer, recipe.window, recipe.stride, recipe.tokens))
