"""Which blocks go: the least of all scores, under a share of blocks to remove.

Uniform: the same share of every layer. By sensitivity: the share of all layers together, each layer's scores weighed by
what an error of its output does to the model's. Then the last block removed of every layer costs the model the same,
which is where the sum of the costs is least.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .blocks import Mask
from .criteria import Scores


def keep_best(scores: Scores, sparsity: float) -> Mask:
    """A mask that removes a share of the blocks, those of the lowest scores.

    Args:
        scores: [rows, columns]; among equal ones the first go first.
        sparsity: Share to remove, in [0, 1].
    """
    order = np.argsort(scores, axis=None, kind="stable")
    mask = np.ones(scores.size, np.bool_)
    mask[order[: round(sparsity * scores.size)]] = False
    return mask.reshape(scores.shape)


def allocate(scores: Mapping[str, Scores], weights: Mapping[str, float], sparsity: float) -> dict[str, Mask]:
    """Masks of several layers that together remove a share of their blocks.

    Args:
        scores: Of the blocks of each layer, which are of one size.
        weights: What each layer's scores are multiplied by.
        sparsity: Share of all blocks to remove.
    """
    with np.errstate(over="ignore"):  # what is infinite goes last
        flat = [scores[name].ravel() * weights[name] for name in scores]
    mask = keep_best(np.concatenate([*flat, np.zeros(0)]), sparsity)
    ends = np.cumsum([len(part) for part in flat])
    parts = np.split(mask, ends[:-1]) if flat else []
    return {name: part.reshape(scores[name].shape) for name, part in zip(scores, parts, strict=True)}
