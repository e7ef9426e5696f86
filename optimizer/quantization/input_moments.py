"""What is known of the inputs of a product: second moments, which add up over batches, and what they say of an error.

Of rows x~ that a weight reads on the path of rounded weights, and rows x of the float model,

    H = X~'X~ / n,    C = X~'X / n,

and weights w~ in place of w cost, per row of data on average and with F = X'X / n,

    |w~ x~ - w x|^2 = w~ H w~' - 2 w~ C w' + w F w',

which is E H E' for the change E where both paths are the same.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_ROWS = 1 << 13
"""Multiplied at a time."""


@dataclasses.dataclass(frozen=True)
class InputMoments:
    """Moments of the inputs of G groups of output channels.

    Attributes:
        second: H, float32 [G, K, K].
        count: Rows that it is the mean of.
        cross: C, float32 [G, K, K]; None where both paths are the same, or nobody wants it.
        float_second: F, likewise.
    """

    second: Floats
    count: int
    cross: Floats | None = None
    float_second: Floats | None = None

    @property
    def diagonal(self) -> Floats:
        """Mean squares of the inputs, [G, K]."""
        squares: Floats = np.einsum("gkk->gk", self.second).copy()
        return squares

    def energy(self, rows: Floats) -> float:
        """The squares of the float model's product of all outputs [N, K]."""
        return _products(rows, self.second if self.float_second is None else self.float_second, rows)

    def cost(self, found: Floats, rows: Floats) -> float:
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


def _products(left: Floats, matrices: Floats, right: Floats) -> float:
    """The sum of l M r' over rows, of G groups."""
    parts = zip(np.split(left, len(matrices)), matrices, np.split(right, len(matrices)), strict=True)
    return sum(
        float(np.einsum("nk,nk->", a[begin : begin + _ROWS] @ matrix, b[begin : begin + _ROWS], dtype=np.float64))
        for a, matrix, b in parts
        for begin in range(0, len(a), _ROWS)
    )
