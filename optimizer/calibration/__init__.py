"""Calibration: what a model's tensors hold when it runs on real data, and the ranges that follow from it."""

from .data import Data
from .source import Calibration
from .statistics import Statistics, StatisticsSpec, TensorStatistics

__all__ = ["Calibration", "Data", "Statistics", "StatisticsSpec", "TensorStatistics"]
