"""Blocks of a weight, their masks and their compressed form."""

from __future__ import annotations

import numpy as np
import pytest
from onnxpress.optimizer.errors import UsageError
from onnxpress.optimizer.sparsity import Block, encode, expand, occupied
from onnxpress.optimizer.sparsity.blocks import block_sums

SHAPES = [(8, 8), (7, 5), (64, 33), (1, 1), (3, 17)]
BLOCKS = [Block(4, 4), Block(4, 1), Block(1, 4), Block(1, 16), Block(64, 3)]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_compressed_form_is_what_the_op_reads(shape, block):
    """Decoded weight by weight, from the definition of the op."""
    (K, N), (rows, columns) = shape, block.grid(shape)
    W = noise(*shape)
    mask = np.random.default_rng(1).random((rows, columns)) < 0.4
    found = encode(W, mask, block)
    assert found.values.shape == (mask.sum(), block.n, block.k)
    assert found.indices.dtype == found.offsets.dtype == np.int32
    assert found.offsets[0] == 0
    assert found.offsets[-1] == mask.sum()
    assert (np.diff(found.offsets) == mask.sum(axis=1)).all()
    decoded = np.zeros((columns * block.k, rows * block.n), np.float32)
    for row in range(rows):
        for at in range(found.offsets[row], found.offsets[row + 1]):
            for n in range(block.n):
                for k in range(block.k):
                    decoded[found.indices[at] * block.k + k, row * block.n + n] = found.values[at, n, k]
    assert (decoded[K:] == 0).all()
    assert (decoded[:, N:] == 0).all()
    np.testing.assert_array_equal(decoded[:K, :N], np.where(expand(mask, block, shape), W, 0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_sums_and_masks(shape, block):
    W = noise(*shape)
    sums = block_sums(W, block)
    for row in range(sums.shape[0]):
        for column in range(sums.shape[1]):
            part = W[column * block.k : (column + 1) * block.k, row * block.n : (row + 1) * block.n]
            assert sums[row, column] == pytest.approx(part.sum(dtype=np.float64), abs=1e-9)
    mask = np.random.default_rng(1).random(sums.shape) < 0.5
    assert (occupied(np.where(expand(mask, block, shape), W, 0), block) == mask).all()


def test_empty_and_full():
    W, block = noise(6, 6), Block(4, 4)
    empty = encode(W, np.zeros((2, 2), bool), block)
    assert empty.values.shape == (0, 4, 4)
    assert (empty.offsets == 0).all()
    assert encode(W, np.ones((2, 2), bool), block).indices.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("text", ["", "4", "4x", "x4", "0x4", "4x65", "4x4x4", "-4x4", "4.0x4", "٤x4", "9" * 50 + "x1"])
def test_malformed(text):
    with pytest.raises(UsageError, match="block is"):
        Block.parse(text)


def test_parsed():
    assert Block.parse(" 1X16 ") == Block(1, 16)
    assert str(Block(4, 1)) == "4x1"
