"""One block-sparse product to time, whose sizes are refused before anything slow is imported."""

from __future__ import annotations

import dataclasses

from ..errors import UsageError
from ..sparsity import Block

SHAPES = ((1024, 1024), (1024, 4096), (4096, 1024))
"""K x N of products in encoders of text."""
BLOCKS = (Block(4, 4), Block(4, 1), Block(1, 4), Block(1, 16))
SPARSITIES = (0.7, 0.75, 0.8, 0.85, 0.9)
ROWS = (1, 8, 16, 128)
DTYPES = ("int8", "uint8", "float32")


@dataclasses.dataclass(frozen=True)
class SparseCase:
    """One product: [M, K] x [K, N].

    Attributes:
        M: Rows.
        K: Length of the reduction.
        N: Output channels.
        block: Sizes of a block.
        sparsity: Share of the blocks that are zero, spread at random.
        dtype: "int8", of float32 to float32, activations rounded row by row; "uint8", of codes to codes; "float32".
    """

    M: int
    K: int
    N: int
    block: Block
    sparsity: float
    dtype: str = "int8"

    def __post_init__(self) -> None:
        """Refuse what is no product.

        Raises:
            UsageError: A sparsity outside [0, 1), a size below 1, or no such type.
        """
        if self.dtype not in DTYPES:
            raise UsageError(f'dtype "{self.dtype}": there are {", ".join(DTYPES)}')
        if not 0 <= self.sparsity < 1:
            raise UsageError(f"sparsity is {self.sparsity}, must be at least 0 and below 1")
        if min(self.M, self.K, self.N) < 1:
            raise UsageError(f"{self.M} rows of {self.K} x {self.N}: sizes must be positive")
