"""Calibration: what a model's tensors hold when it runs on real data, and the ranges that follow from it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .source import Calibration

if TYPE_CHECKING:
    from .data import Data
    from .statistics import Statistics, StatisticsSpec, TensorStatistics

__all__ = ["Calibration", "Data", "Statistics", "StatisticsSpec", "TensorStatistics"]

_PLACES = {
    "Data": "data",
    "Statistics": "statistics",
    "StatisticsSpec": "statistics",
    "TensorStatistics": "statistics",
}


def __getattr__(name: str) -> Any:
    # Who checks a request needs none of them, nor ONNX, which they take a second to import.
    if name in _PLACES:
        return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
