"""What each family asks of a request, whatever the model: data, and settings that go with the data there is.

A request is refused by this before anything slow is imported, so it needs settings alone.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable

from ..errors import SettingError, SettingsError, option
from ..gradients.torch_package import require_torch
from ..settings.lengths import SEARCH
from ..settings.recipe import Recipe


class Need(enum.Enum):
    """What calibration data is to a recipe."""

    NONE = enum.auto()
    WELCOME = enum.auto()
    REQUIRED = enum.auto()


@dataclasses.dataclass(frozen=True)
class Demands:
    """What a family asks of a request.

    Attributes:
        name: That of its `settings.families.FamilySettings`.
        need: What data is to a recipe, and whether somebody gave some; a model of the catalogue has its own.
        check: Refuses, by SettingError or SettingsError, a recipe that cannot be met with the data there is: whether
            there is any, and whether that is statistics in place of data.
        takes_statistics: Whether statistics do in place of data.
        goes_on: Whether an interrupted conversion by a recipe can go on, from `Calibration.checkpoint`.
        spreads: Whether a conversion, to which data is what it is, has parts that other machines can do.
    """

    name: str
    need: Callable[[Recipe, bool], Need] = lambda _recipe, _given: Need.NONE
    check: Callable[[Recipe, bool, bool], None] = lambda _recipe, _is_there, _statistics: None
    takes_statistics: bool = True
    goes_on: Callable[[Recipe], bool] = lambda _recipe: False
    spreads: Callable[[Recipe, Need], bool] = lambda _recipe, _need: False

    def reads_data(self, recipe: Recipe) -> bool:
        """Whether a recipe reads data that somebody gave."""
        return self.need(recipe, True) is not Need.NONE


def demands_of(name: str) -> Demands:
    """Those of a family by its name, as in `Recipe.family`."""
    (found,) = (each for each in _DEMANDS if each.name == name)
    return found


def _need_of_weights(recipe: Recipe, given: bool) -> Need:
    """A model of the catalogue has data without being asked, which is not read for weights alone then."""
    if recipe.input_scales is not None:
        return Need.REQUIRED
    if recipe.max_loss is not None:
        return Need.REQUIRED if recipe.judged_by is None else Need.WELCOME
    if recipe.budget is not None:
        return Need.REQUIRED
    reads = recipe.method != "rtn"
    if recipe.method is None or (not reads and recipe.compensates):
        reads = given
    return Need.REQUIRED if reads else Need.NONE


def _reads_for_weights(recipe: Recipe) -> bool:
    return _need_of_weights(recipe, True) is not Need.NONE


def _check_weights(recipe: Recipe, is_there: bool, _statistics: bool) -> None:
    """Refuse a metric without a bound, which nothing would read, and an order of what is not rounded by data."""
    if recipe.judged_by is not None and recipe.max_loss is None:
        bounds = f"{option('max-drop')} or {option('max-kl')}"
        raise SettingsError(["metric"], f": weights alone are not judged without a bound; give {bounds}, too")
    if recipe.trains:
        require_torch(f"method {recipe.method}")
    if not recipe.sequential and ((recipe.method == "rtn" and not recipe.compensates) or not is_there):
        why = f", but no weight is rounded by data: give {option('calibration')}, and a method other than rtn"
        raise SettingError("sequential", False, why)


def _check_calibrated(recipe: Recipe, _is_there: bool, statistics: bool) -> None:
    """Refuse what runs models on data, where there are only statistics."""
    steps = ("smooth", "restore_moments", "equalize", "only_if_faster", "metric")
    asked = [name for name in steps if getattr(recipe, name)]
    asked += ["method"] if recipe.method == "gptq" else []
    asked += [name for name in ("max_drop", "max_kl") if getattr(recipe, name) is not None]
    if statistics and asked:
        raise SettingsError(
            asked, f": runs models on data; statistics alone are too little: give {option('calibration')}"
        )


def has_static_codes(recipe: Recipe) -> bool:
    """Whether a recipe of sparse rounds activations by scales from a calibration."""
    return recipe.activations == "static" and recipe.dtype == "int8"


def _need_of_sparse(recipe: Recipe, _given: bool = True) -> Need:
    """A calibration is read where there is one; whether there must be one is for `_check_sparse` to say."""
    reads = has_static_codes(recipe) or (recipe.chooses and recipe.criterion != "magnitude")
    return Need.WELCOME if reads else Need.NONE


def _check_sparse(recipe: Recipe, is_there: bool, _statistics: bool) -> None:
    """Refuse what only a calibration tells, where there is none."""
    if is_there or _need_of_sparse(recipe) is Need.NONE:
        return
    for key, value, other in (
        ("activations", recipe.activations if has_static_codes(recipe) else None, "dynamic"),
        ("criterion", recipe.criterion if recipe.prune else None, "magnitude"),
    ):
        if value not in (None, other):
            data = f"{option('calibration')} or {option('statistics')}"
            raise SettingError(key, value, f', which needs a calibration: give {data}, or take "{other}"')
    if not recipe.sequential:
        raise SettingError(
            "sequential",
            False,
            f", but without a calibration no weights move: give {option('calibration')} or {option('statistics')}",
        )


def _spreads_weights(recipe: Recipe, need: Need) -> bool:
    """Whether weights are rounded by data, or what they cost is measured."""
    reads = recipe.method != "rtn" or recipe.compensates or recipe.budget is not None
    return need is not Need.NONE and reads


def _searches(recipe: Recipe) -> bool:
    return recipe.lengths == SEARCH


_DEMANDS = (
    Demands(
        "weight-only",
        _need_of_weights,
        _check_weights,
        takes_statistics=False,
        goes_on=_reads_for_weights,
        spreads=_spreads_weights,
    ),
    Demands("static", lambda _recipe, _given: Need.REQUIRED, _check_calibrated),
    Demands("dynamic", goes_on=_searches, spreads=lambda recipe, _need: _searches(recipe)),
    Demands("minifloat-static", lambda _recipe, _given: Need.REQUIRED, _check_calibrated),
    Demands("minifloat-dynamic"),
    Demands("float"),
    Demands("sparse", _need_of_sparse, _check_sparse),
)
