"""What is known of the inputs of a product: second moments, which add up over batches, and what they say of an error.

Of rows x~ that a weight reads on the path of rounded weights, and rows x of the float model,

    H = X~'X~ / n,    C = X~'X / n,

and weights w~ in place of w cost, per row of data on average and with F = X'X / n,

    |w~ x~ - w x|^2 = w~ H w~' - 2 w~ C w' + w F w',

which is E H E' for the change E where both paths are the same. Where a bias takes the mean of the error away, all are
about the mean.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from .blas import product
from .gptq import InOrder

Floats = npt.NDArray[np.float32]
Matrices = npt.NDArray[Any]
"""float32 or float64."""

_ROWS = 1 << 13
"""Multiplied at a time."""


@dataclasses.dataclass(frozen=True)
class InputMoments:
    """Moments of the inputs of G groups of output channels.

    Attributes:
        second: H, [G, K, K].
        count: Rows that it is the mean of.
        cross: C, [G, K, K]; None where both paths are the same, or nobody wants it.
        float_second: F, likewise.
        mean: Of x~, [G, K], about which all moments are; None where they are about 0.
        float_mean: Of x, likewise; None where both paths are the same.
    """

    second: Matrices
    count: int
    cross: Matrices | None = None
    float_second: Matrices | None = None
    mean: Matrices | None = None
    float_mean: Matrices | None = None

    @property
    def diagonal(self) -> Floats:
        """Mean squares of the inputs, [G, K]."""
        squares: Floats = np.einsum("gkk->gk", self.second).copy()
        return squares

    @functools.cached_property
    def in_order(self) -> InOrder:
        """How inputs make up for each other: computed once for all weights that read them."""
        return InOrder(self.second)

    def energy(self, rows: Matrices) -> float:
        """The squares of the float model's product of all outputs [N, K]."""
        return _products(rows, self.second if self.float_second is None else self.float_second, rows)

    def cost(self, found: Matrices, rows: Matrices) -> float:
        """What the product of all outputs loses, with what was seen of the paths.

        Args:
            found: w~, [N, K].
            rows: w, [N, K].
        """
        if self.cross is None or self.float_second is None:
            change = found - rows
            return _products(change, self.second, change)
        return max(
            0.0,
            _products(found, self.second, found) - 2 * _products(found, self.cross, rows)
            + _products(rows, self.float_second, rows),
        )  # fmt: skip


def draw_towards_diagonal(matrices: Matrices, trusted: int, most: float = 1.0) -> None:
    """Take what was not seen often to vary together for varying alone: by the share K / (K + n) for n that count.

    Args:
        matrices: [G, K, K], which are changed.
        trusted: n.
        most: Share of what they have in common that stays, however many rows there are.
    """
    alone = np.einsum("gkk->gk", matrices).copy()
    matrices *= matrices.dtype.type(min(most, trusted / (trusted + matrices.shape[-1])))
    np.einsum("gkk->gk", matrices)[...] = alone


def _products(left: Matrices, matrices: Matrices, right: Matrices) -> float:
    """The sum of l M r' over rows, of G groups; whatever the number of threads."""
    parts = zip(np.split(left, len(matrices)), matrices, np.split(right, len(matrices)), strict=True)
    return sum(
        float(np.einsum("nk,nk->", product(a[rows], matrix), b[rows], dtype=np.float64))
        for a, matrix, b in parts
        for rows in (slice(begin, begin + _ROWS) for begin in range(0, len(a), _ROWS))
    )
