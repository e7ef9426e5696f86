"""What is known of the inputs of a product: second moments, which add up over batches, and what they say of an error.

Of rows x~ that a weight reads on the path of rounded weights, and rows x of the float model,

    H = X~'X~ / n,    C = X~'X / n,

and a change E of the weights of an output costs E H E' per row of data, on average.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class InputMoments:
    """Moments of the inputs of G groups of output channels.

    Attributes:
        second: H, float32 [G, K, K].
        count: Rows that it is the mean of.
        cross: C, float32 [G, K, K]; None where both paths are the same, or nobody asked for it.
    """

    second: Floats
    count: int
    cross: Floats | None = None

    @property
    def diagonal(self) -> Floats:
        """Mean squares of the inputs, [G, K]."""
        squares: Floats = np.einsum("gkk->gk", self.second).copy()
        return squares

    def cost(self, change: Floats) -> float:
        """The sum over outputs of E H E'.

        Args:
            change: E, [N, K].
        """
        return sum(
            float(np.einsum("nk,nk->", part @ second, part, dtype=np.float64))
            for part, second in zip(np.split(change, len(self.second)), self.second, strict=True)
        )
