"""Real models and labelled data that package registries ship, and tasks to judge a model by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .catalogue import entry, names, path
from .fetch import Entry

if TYPE_CHECKING:
    from .calibration_data import Feeds

__all__ = ["Entry", "calibration", "entry", "names", "path"]


def calibration(name: str, samples: int) -> Iterator[Feeds]:
    """Inputs to calibrate a model of the catalogue on: see `calibration_data.calibration`."""
    from . import calibration_data

    return calibration_data.calibration(name, samples)
