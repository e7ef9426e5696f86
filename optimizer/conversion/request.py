"""What is wrong with a request whatever the model is, so that it is told before the model is read."""

from __future__ import annotations

from ..calibration import Calibration
from ..errors import SettingsError, option
from ..evaluation.metrics import check_name
from ..families import weight_only
from ..families.calibrated import convert as static
from ..families.sparse import convert as sparse
from ..settings.recipe import Recipe


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
    if recipe.metric is not None:
        check_name(recipe.metric)
    if recipe.kind in ("static", "minifloat-static"):
        calibration.check(name)
        if calibration.statistics is not None:
            static.refuse_statistics(recipe)
    elif recipe.kind == "sparse" and sparse.needs_data(recipe):
        if calibration.is_there(name):
            calibration.check(name)
        else:
            sparse.refuse_without_data(recipe)
    elif weight_only.learns(recipe, calibration):
        if calibration.statistics is not None:
            raise SettingsError(
                ["statistics"], f": scheme {recipe.scheme} learns from data: give {option('calibration')}"
            )
        calibration.check(name)
    elif calibration != Calibration():
        unread = [key for key, value in vars(calibration).items() if value is not None]
        raise SettingsError(unread, f": scheme {recipe.scheme} reads no calibration data with these settings")
