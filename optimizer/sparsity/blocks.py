"""Weights in constant blocks, and the compressed form of those that are kept.

A weight W [K, N] is cut into blocks of `k` consecutive inputs by `n` consecutive outputs. Block (r, c) holds the
outputs from r n and the inputs from c k on; blocks at the ends reach over K and N, where everything is zero. Masks and
scores of blocks are matrices [ceil(N / n), ceil(K / k)]: a row of blocks shares outputs, as the rows of W' do.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import SettingError

MOST = 64
"""The longest side of a block."""

Floats = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True, order=True)
class Block:
    """Sizes of a block, written "4x1" for k = 4 and n = 1.

    Attributes:
        k: Consecutive inputs.
        n: Consecutive outputs.
    """

    k: int
    n: int

    @classmethod
    def parse(cls, text: str) -> Block:
        """Read "KxN".

        Raises:
            SettingError: It is not of this form, or a side is not from 1 to 64.
        """
        found = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text.strip().lower(), re.ASCII)
        sides = tuple(int(side) for side in found.groups()) if found else (0, 0)
        if not all(1 <= side <= MOST for side in sides):
            problem = f", must be inputs x outputs, such as 4x4, 4x1 or 1x16, each from 1 to {MOST}"
            raise SettingError("block", text, problem)
        return cls(*sides)

    def __str__(self) -> str:
        return f"{self.k}x{self.n}"

    @property
    def size(self) -> int:
        """Weights in it."""
        return self.k * self.n

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of blocks of a weight of shape (K, N)."""
        return -(-shape[1] // self.n), -(-shape[0] // self.k)


@dataclasses.dataclass(frozen=True)
class Compressed:
    """The blocks of a weight that are kept, as `onnxpress::BlockSparseMatMul` takes them.

    Attributes:
        values: [blocks, n, k], in the order of `indices`; zeros beyond K and N.
        indices: int32 [blocks], which k-block, ascending within a row of blocks.
        offsets: int32 [rows + 1], where the blocks of each row begin.
    """

    values: npt.NDArray[Any]
    indices: Ints
    offsets: Ints

    @property
    def nbytes(self) -> int:
        """Of all three."""
        return self.values.nbytes + self.indices.nbytes + self.offsets.nbytes


def tiles(weight: npt.NDArray[Any], block: Block) -> npt.NDArray[Any]:
    """The weight [K, N] as [rows, columns, n, k], padded by zeros."""
    (K, N), (rows, columns) = weight.shape, block.grid(weight.shape)
    padded = np.zeros((columns * block.k, rows * block.n), weight.dtype)
    padded[:K, :N] = weight
    cut: npt.NDArray[Any] = padded.reshape(columns, block.k, rows, block.n).transpose(2, 0, 3, 1)
    return cut


def block_sums(values: Floats, block: Block) -> npt.NDArray[np.float64]:
    """Sums over the blocks of values [K, N]: float64 [rows, columns]."""
    sums: npt.NDArray[np.float64] = tiles(values, block).sum(axis=(2, 3), dtype=np.float64)
    return sums


def expand(mask: Mask, block: Block, shape: tuple[int, ...]) -> Mask:
    """A mask of blocks [rows, columns] as one of weights [K, N]."""
    whole: Mask = np.repeat(np.repeat(mask.T, block.k, axis=0), block.n, axis=1)
    return whole[: shape[0], : shape[1]]


def occupied(weight: npt.NDArray[Any], block: Block) -> Mask:
    """Which blocks of a weight [K, N] hold something else than zeros: bool [rows, columns]."""
    mask: Mask = (tiles(weight, block) != 0).any(axis=(2, 3))
    return mask


def encode(weight: npt.NDArray[Any], mask: Mask, block: Block) -> Compressed:
    """Compress a weight to the blocks that a mask keeps.

    Args:
        weight: [K, N] of any type.
        mask: bool [rows, columns]; what it does not keep is left out, zero or not.
        block: Sizes of a block.
    """
    offsets = np.concatenate([[0], np.cumsum(mask.sum(axis=1))]).astype(np.int32)
    indices = np.nonzero(mask)[1].astype(np.int32)
    return Compressed(np.ascontiguousarray(tiles(weight, block)[mask]), indices, offsets)
