"""What a method of rounding is given, and what it gives back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ..input_moments import InputMoments
from ..quantized_weight import QuantizedWeight
from ..schemes import WeightScheme

Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A weight to round, and what its inputs are known to hold.

    Attributes:
        rows: Its output channels, [N, K], finite.
        scheme: What it is rounded to.
        moments: Of its inputs.
        apart: The same of other rows, for what a method has to judge itself; `moments` where none are kept apart.
        convolution: Whether they are those of a convolution, which have a sign in common.
        start: The weight as it is rounded by itself, whose scales `gptq` then takes; None where it may search others.
    """

    rows: Floats
    scheme: WeightScheme
    moments: InputMoments
    apart: InputMoments
    convolution: bool = False
    start: QuantizedWeight | None = None

    def importance(self, power: float) -> Floats | None:
        """What the search of scales lets the error of each input count, [K]: its mean square to some power.

        None for groups of channels, which have inputs of their own.
        """
        return None if len(self.moments.second) > 1 else importance_of(self.moments.diagonal[0], power)


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to round weights.

    Attributes:
        name: In recipes and on the command line.
        round: Rounds a weight; with its inputs known.
        reads_both_paths: Whether it reads `InputMoments.cross`.
        target: The weight [N, K] that it aims at, for what makes up for its errors.
    """

    name: str
    round: Callable[[Problem], QuantizedWeight]
    reads_both_paths: bool = False
    target: Callable[[Problem], Floats] = lambda problem: problem.rows


def importance_of(squares: Floats, power: float) -> Floats:
    """Mean squares of inputs [K] to some power, as multiples of their mean; ones where all are 0."""
    counts = np.maximum(squares, 0) ** np.float32(power)
    mean = counts.mean()
    return np.ascontiguousarray(counts / mean if mean > 0 else np.ones_like(counts), np.float32)
