"""Relu and Clip ahead of moves: what is swapped, what stays, and that nothing changes in value."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import Builder
from onnxpress.optimizer.passes.clamp_before_move import ClampBeforeMove
from rewrites import rewritten

X = np.random.default_rng(0).standard_normal((1, 8, 6, 6)).astype(np.float32)


def model(*ops, extra_output: bool = False):
    """x through operators, each a function of builder and value."""
    b = Builder(17)
    y = b.input("x", [1, 8, 6, 6])
    for op in ops:
        previous, y = y, op(b, y)
    b.output(y, [None] * 4)
    if extra_output:
        b.output(previous, [None] * 4)
    return b.model()


def relu(b, x):
    return b.op("Relu", x)


def clip(b, x):
    return b.op("Clip", x, b.constant("low", np.float32(-0.5)), b.constant("high", np.float32(0.25)))


def shuffle(b, x):
    return b.op("DepthToSpace", x, blocksize=2)


def transpose(b, x):
    return b.op("Transpose", x, perm=[0, 2, 3, 1])


def pool(b, x):
    return b.op("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])


def reshape(b, x):
    return b.op("Reshape", x, b.constant("shape", np.array([1, 4, 12, 6], np.int64)))


def mean(b, x):
    return b.op("AveragePool", x, kernel_shape=[2, 2])


def swapped(made, **settings):
    return rewritten(made, ClampBeforeMove(), {"x": X}, depth=1, **settings)


@pytest.mark.parametrize("clamp", [relu, clip])
@pytest.mark.parametrize("move", [shuffle, transpose, pool, reshape])
def test_swaps(move, clamp):
    made = model(move, clamp)
    names = [value.name for value in made.graph.outputs]
    ops = swapped(made)
    assert ops[0] == ("Relu" if clamp is relu else "Clip")
    assert [value.name for value in made.graph.outputs] == names


def test_goes_through_several():
    assert swapped(model(reshape, transpose, relu)) == ["Relu", "Reshape", "Transpose"]


def test_stops_at_arithmetic():
    assert swapped(model(mean, transpose, relu)) == ["AveragePool", "Relu", "Transpose"]
    assert swapped(model(mean, relu), changes=False) == ["AveragePool", "Relu"]


def test_leaves_what_others_read():
    assert swapped(model(transpose, relu, extra_output=True), changes=False) == ["Transpose", "Relu"]


def test_a_bound_that_is_made_between_the_move_and_the_clamp_stays_ahead_of_it():
    b = Builder()
    moved = b.op("Transpose", b.input("x", [3, 4]), perm=[1, 0], name="move")
    high = b.op("Identity", b.constant("c", np.float32(0.5).reshape(())), name="bound")
    y = b.op("Clip", moved, None, high, name="clamp")
    b.output(y, [4, 3])
    model = b.model()
    assert ClampBeforeMove()(model)
    assert [node.name for node in model.graph] == ["bound", "clamp", "move"]
