"""What a block is worth: the score of each, by which the least are removed.

    magnitude   |B|^2                           the sum of squares of its weights
    wanda       sum over B of w^2 H_kk          H = X'X / n, so that H_kk is the mean square of input k

The first is Han et al., 2015 (arXiv:1506.02626), for blocks; the second is that of Sun et al., 2023
(arXiv:2306.11695), |w| |x_k|, squared so that it adds up over a block. Both leave the weights that are kept as they
are. `obs` is the third.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .blocks import Block, Floats, block_sums

Scores = npt.NDArray[np.float64]


def magnitude_scores(weight: Floats, block: Block) -> Scores:
    """Sums of squares of the blocks of a weight [K, N]: float64 [rows, columns]."""
    return block_sums(np.square(weight, dtype=np.float64), block)


def wanda_scores(weight: Floats, gram: Floats, block: Block) -> Scores:
    """Squares of weights times the mean squares of their inputs.

    Args:
        weight: [K, N].
        gram: H [K, K], or any matrix with its diagonal.
        block: Sizes of a block.

    Returns:
        float64 [rows, columns].
    """
    power = np.maximum(np.diagonal(gram), 0).astype(np.float64)
    return block_sums(np.square(weight, dtype=np.float64) * power[:, None], block)


def output_error(change: Floats, gram: Floats) -> float:
    """tr(D'HD) of a change D [K, N] of a weight: the mean squared error of an output row, summed over outputs."""
    wide = change.astype(np.float64)
    return float(np.einsum("kn,kn->", wide, gram @ wide))
