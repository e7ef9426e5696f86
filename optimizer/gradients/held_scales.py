"""Scales as they can be held, of few bits, while they are trained."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ..quantization.formats import SCALE_TYPES
from ..quantization.schemes import WeightScheme


def held_scales(scales: npt.NDArray[np.float32], scheme: WeightScheme) -> npt.NDArray[np.float32]:
    """The nearest that a scheme holds, of either sign; 0 stays."""
    held = SCALE_TYPES[scheme.scale_type].round(np.abs(scales), scheme.number_format)
    return np.where(scales == 0, scales, np.copysign(held, scales))


def as_held(scales: torch.Tensor, scheme: WeightScheme) -> torch.Tensor:
    """The same, taken as they are in derivatives (straight-through)."""
    with torch.no_grad():
        lost = torch.from_numpy(held_scales(scales.numpy(), scheme)) - scales
    return scales + lost
