"""What is told of a rounded weight."""

from __future__ import annotations

import math

import pytest
from onnxpress.optimizer.quantization.quantized_weight import decibels


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        (100, 1, 20),
        (1, 0, math.inf),
        (0, 0, 0),
        (0, 1, -math.inf),
        (1, math.inf, -math.inf),
        (1e-300, 1e300, -math.inf),
    ],
)
def test_decibels(signal, noise, expected):
    assert decibels(signal, noise) == pytest.approx(expected)
