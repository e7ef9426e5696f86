"""Mean and deviation of channels, and the affine map that gives a channel those of another.

    y' = f (y - m) + m0,   f = d0 / d

has mean m0 and deviation d0 where y has m and d. It is what a BatchNormalization with statistics measured anew would
do (Sun et al. 2019, "Hybrid 8-bit floating point", section 3.3, re-estimate them so for a rounded network).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

_MOST = 2.0
"""A channel whose deviation changed by more than this factor is broken or nearly constant: its mean alone is mended."""


class ChannelMoments(Protocol):
    """What is read of the statistics of a tensor: arrays [C], or None where they were not collected."""

    @property
    def channel_mean(self) -> npt.NDArray[Any] | None: ...  # noqa: D102

    @property
    def channel_std(self) -> npt.NDArray[Any] | None: ...  # noqa: D102


@dataclasses.dataclass(frozen=True)
class Moments:
    """Of one tensor.

    Attributes:
        channel_mean: float64 [C].
        channel_std: float64 [C], population deviation.
    """

    channel_mean: Doubles
    channel_std: Doubles

    @classmethod
    def of(cls, x: npt.NDArray[np.floating], axis: int) -> Moments:
        """Those of an array along all axes but one."""
        rows = np.moveaxis(x.astype(np.float64), axis, 0).reshape(x.shape[axis], -1)
        return cls(rows.mean(axis=1), rows.std(axis=1))


def restoring_map(
    reference: ChannelMoments, measured: ChannelMoments, *, mean_alone: bool = False
) -> tuple[Doubles, Doubles] | None:
    """Factor and offset that give a channel the moments of the reference: y' = factor y + offset.

    Args:
        reference: What they shall be.
        measured: What they are.
        mean_alone: Leave the deviation: a factor of 1.

    Returns:
        Two arrays [C]; None where moments are missing, are not finite, or are of other channels.
    """
    arrays = (reference.channel_mean, reference.channel_std, measured.channel_mean, measured.channel_std)
    mean0, std0, mean, std = (np.asarray([] if array is None else array, np.float64) for array in arrays)
    if not (mean0.size and mean0.shape == std0.shape == mean.shape == std.shape):
        return None
    if not all(np.isfinite(array).all() for array in (mean0, std0, mean, std)):
        return None
    factor = np.divide(std0, std, out=np.ones_like(std), where=std > 0)
    sound = (factor <= _MOST) & (factor >= 1 / _MOST) & (not mean_alone)
    factor = np.where(sound, factor, 1.0)
    return factor, mean0 - factor * mean
