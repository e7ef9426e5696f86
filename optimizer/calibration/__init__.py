"""Calibration: what a model's tensors hold when it runs on real data, and the ranges that follow from it."""

from .collect import collect
from .data import Data, open_data
from .inputs import Input, inputs_of
from .ranges import activation_range, unusable
from .source import Calibration
from .statistics import Statistics, TensorStatistics, Wanted

__all__ = [
    "Calibration",
    "Data",
    "Input",
    "Statistics",
    "TensorStatistics",
    "Wanted",
    "activation_range",
    "collect",
    "inputs_of",
    "open_data",
    "unusable",
]
