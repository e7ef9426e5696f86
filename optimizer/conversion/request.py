"""What is wrong with a request whatever the model is, so that it is told before the model is read."""

from __future__ import annotations

from pathlib import Path

from ..calibration import Calibration
from ..calibration.tokens import TOKENIZER
from ..errors import SettingsError, UsageError, option
from ..evaluation.language import TEXT_TASKS, Text, TextMetric
from ..evaluation.metrics import UserMetric, check_name
from ..families import family_of
from ..families.family import Family, Need
from ..settings.recipe import Recipe
from ..settings.setting import settings_of


def check_request(recipe: Recipe, calibration: Calibration, name: str | None) -> None:
    """Refuse data that nobody reads, or that is lacking, and a metric that is none.

    Args:
        recipe: What to do.
        calibration: What was given to learn from.
        name: Of the model in the catalogue, which has data of its own; None of another.

    Raises:
        SettingError, SettingsError: Settings, by key, with which the request cannot be met with any model.
        UsageError: It cannot be met otherwise: there is no data, or no such metric.
        OnnxpressError: A file that it names cannot be read.
    """
    metric = recipe.judged_by
    if metric is not None:
        check_name(metric)
    if metric in TEXT_TASKS and recipe.text is None and calibration.text is None:
        raise UsageError(f"{metric} needs a text: give {option('text')}, or a text as {option('calibration')}")
    family = family_of(recipe.family)
    need, is_there = family.need(recipe, calibration != Calibration()), calibration.is_there(name)
    if need is Need.NONE and calibration != Calibration():
        unread = [key for key, value in vars(calibration).items() if value is not None]
        problem = f": scheme {recipe.scheme} reads no calibration data with these settings"
        raise SettingsError(unread, problem, _guilty(recipe, family))
    if need is Need.REQUIRED or (need is Need.WELCOME and is_there):
        calibration.check(name, or_statistics=family.takes_statistics)
        if calibration.statistics is not None and not family.takes_statistics:
            problem = f": scheme {recipe.scheme} learns from data: give {option('calibration')}"
            raise SettingsError(["statistics"], problem)
    if calibration.checkpoint is not None and not family.goes_on:
        raise SettingsError(["checkpoint"], f": scheme {recipe.scheme} does not go on after an interruption")
    family.check(recipe, is_there, calibration.statistics is not None)


def _guilty(recipe: Recipe, family: Family) -> list[str]:
    """The settings with whose default data would be read."""
    defaults = {key: getattr(Recipe, key) for key in settings_of(Recipe)}
    others = {key: recipe.decided(**{key: default}) for key, default in defaults.items() if key != "scheme"}
    return [key for key, other in others.items() if family.need(other, True) is not Need.NONE]


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
