"""The errors to expect of rounding a product, by what its tensors are rounded to.

Steps of integers are as large for all channels of an activation: an error d^2 / 12 each. Those of a floating-point
format of m bits of mantissa are in proportion to the number, whatever its channel is scaled by,

    x^2 2^(-2m) / 28      (a step 2^-m of numbers spread evenly over [1, 2), whose square is 7 / 3 in the mean)

down to the least step, that of subnormal numbers, which only channels far below the largest meet.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .formats import FORMATS, MiniFloat
from .round_weight import round_weight
from .schemes import int8_weights

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]


class Noise(Protocol):
    """What rounding costs."""

    def of_weight(self, weight: Floats) -> Floats:
        """What rounding changes of a weight [K, N] with a scale a column; the same shape."""

    def of_activation(self, absmax: Doubles, squares: Doubles, sides: float) -> Doubles:
        """The mean squared error of each channel of an activation that has one scale.

        Args:
            absmax: [K], largest magnitudes.
            squares: [K], mean squares.
            sides: The length of the activation's range as a multiple of its largest magnitude, 1 to 2.
        """


class IntegerNoise:
    """Of codes of int8."""

    def of_weight(self, weight: Floats) -> Floats:
        """See `Noise`."""
        changed: Floats = round_weight(weight, 1, int8_weights(search=False)).values() - weight
        return changed

    def of_activation(self, absmax: Doubles, squares: Doubles, sides: float) -> Doubles:
        """See `Noise`."""
        step = sides * float(absmax.max()) / 255
        return np.full(absmax.shape, step**2 / 12)


@dataclasses.dataclass(frozen=True)
class MinifloatNoise:
    """Of floating-point formats.

    Attributes:
        weights: Of weights.
        activations: Of activations.
    """

    weights: str
    activations: str

    def of_weight(self, weight: Floats) -> Floats:
        """See `Noise`."""
        numbers = FORMATS[self.weights]
        scale = np.maximum(np.abs(weight).max(axis=0) / np.float32(numbers.max), np.finfo(np.float32).tiny)
        changed: Floats = numbers.round(weight / scale) * scale - weight
        return changed

    def of_activation(self, absmax: Doubles, squares: Doubles, sides: float) -> Doubles:
        """See `Noise`."""
        numbers = FORMATS[self.activations]
        assert isinstance(numbers, MiniFloat)
        scale = 1.0 if self.activations == "e5m2" else float(absmax.max()) / numbers.max
        least = scale * float(numbers.values[1])
        relative = 2.0 ** (-2 * numbers.layout.mantissa) / 28
        noise: Doubles = np.minimum(squares, least**2 / 12) + relative * squares
        return noise
