"""The mean error of rounded weights, which a bias can take back.

    y~ = W~ x  has the mean error  E[y~ - y] = (W~ - W) E[x],

one number an output channel, to be subtracted from the bias (Nagel et al. 2019, arXiv:1906.04721, section 4.2). The
mean of the input is that of each channel over samples and positions; padding counts as if it had the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def bias_shift(
    weight: npt.NDArray[np.floating],
    dequantized: npt.NDArray[np.floating],
    input_mean: npt.NDArray[np.floating],
    groups: int = 1,
) -> npt.NDArray[np.float32]:
    """What to subtract from a bias.

    Args:
        weight: [N, C / groups, ...], a matrix as [N, K].
        dequantized: The numbers that its codes stand for, of the same shape.
        input_mean: [C], mean of each input channel.
        groups: Of a Conv.

    Returns:
        float32 [N].

    Raises:
        ValueError: The shapes do not belong together.
    """
    if weight.shape != dequantized.shape or weight.ndim < 2:
        raise ValueError(f"weights of shapes {weight.shape} and {dequantized.shape}")
    N, C = weight.shape[0], weight.shape[1] * groups
    if input_mean.shape != (C,) or N % groups:
        raise ValueError(f"means of shape {input_mean.shape} for {C} channels in {groups} groups")
    wrong = dequantized.astype(np.float64) - weight
    wrong = wrong.sum(axis=tuple(range(2, weight.ndim))).reshape(groups, N // groups, weight.shape[1])
    means = input_mean.astype(np.float64).reshape(groups, weight.shape[1])
    shift: npt.NDArray[np.float32] = np.einsum("gnc,gc->gn", wrong, means).reshape(N).astype(np.float32)
    return shift
