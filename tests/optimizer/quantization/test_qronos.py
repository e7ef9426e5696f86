"""Rounding towards the float path, against the least squares that define it."""

from __future__ import annotations

import numpy as np
import pytest
from onnxpress.optimizer import Recipe
from onnxpress.optimizer.quantization import gptq
from onnxpress.optimizer.quantization.input_moments import InputMoments
from onnxpress.optimizer.quantization.methods import METHODS, Problem

RNG = np.random.default_rng(2)


def moments(x, y):
    """Of rows [n, K] on the path of rounded weights and of the float model."""
    second, cross, floats = (np.float32(a.T @ b / len(x))[None] for a, b in ((x, x), (x, y), (y, y)))
    return InputMoments(second, len(x), cross, floats)


def paths(rows, noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.standard_normal((rows, 32)) @ MIXING
    return y + noise * rng.standard_normal((rows, 32)) @ SPREAD, y


MIXING, SPREAD = RNG.standard_normal((2, 32, 32))


def target(rows, learned, apart):
    scheme = Recipe(scheme="int4").settings("", "MatMul").weight
    return METHODS["qronos"].target(Problem(rows, scheme, learned, apart))


def test_the_whole_step_is_that_of_least_squares(monkeypatch):
    monkeypatch.setattr(gptq, "_DAMPING", 1e-7)
    x, y = paths(500)
    rows = RNG.standard_normal((5, 32)).astype(np.float32)
    best = np.linalg.lstsq(x, y @ rows.T, rcond=None)[0].T
    np.testing.assert_allclose(target(rows, moments(x, y), moments(x, y)), best, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("scheme", ["int4", "int3", "nf4"])
def test_it_comes_closer_to_the_float_path_than_gptq(scheme):
    rows = RNG.standard_normal((24, 32)).astype(np.float32)
    weights = Recipe(scheme=scheme).settings("", "MatMul").weight
    problem = Problem(rows, weights, moments(*paths(400)), moments(*paths(100, seed=1)))
    unseen = moments(*paths(400, seed=2))
    costs = [unseen.cost(METHODS[name].round(problem).rows(), rows) for name in ("qronos", "gptq")]
    assert costs[0] < 0.9 * costs[1]


def test_a_step_that_harms_other_rows_is_not_taken():
    rows = RNG.standard_normal((4, 32)).astype(np.float32)
    x, y = paths(300)
    np.testing.assert_array_equal(target(rows, moments(x, y), moments(y, x)), rows)


def test_groups_have_steps_of_their_own():
    """As groups of a convolution, each with a share of its own: the second one's does harm."""
    rows = RNG.standard_normal((6, 32)).astype(np.float32)
    (x, y), (u, v) = paths(300), paths(300, seed=3)
    alone = [(moments(x, y), moments(x, y)), (moments(u, v), moments(v, u))]
    both = [
        InputMoments(*(np.concatenate(pair) if isinstance(pair[0], np.ndarray) else pair[0] for pair in zip(
            *((each.second, each.count, each.cross, each.float_second) for each in halves), strict=True
        )))
        for halves in zip(*alone, strict=True)
    ]  # fmt: skip
    found = target(rows, *both)
    np.testing.assert_allclose(found[:3], target(rows[:3], *alone[0]), rtol=1e-3, atol=1e-4)
    assert np.abs(found[:3] - rows[:3]).max() > 0.01
    np.testing.assert_array_equal(found[3:], rows[3:])


def test_without_two_paths_it_is_gptq():
    rows = RNG.standard_normal((24, 32)).astype(np.float32)
    scheme = Recipe(scheme="int4").settings("", "MatMul").weight
    x, _ = paths(200)
    same = InputMoments(np.float32(x.T @ x / 200)[None], 200)
    problem = Problem(rows, scheme, same, same)
    np.testing.assert_array_equal(METHODS["qronos"].round(problem).packed, METHODS["gptq"].round(problem).packed)
