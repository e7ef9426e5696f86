"""GPTQ and Qronos against Optimal Brain Surgeon in float64, which inverts what is left of H for each input anew."""

from __future__ import annotations

import numpy as np
import pytest
from onnxpress.optimizer import Recipe
from onnxpress.optimizer.quantization import gptq
from onnxpress.optimizer.quantization.input_moments import InputMoments
from onnxpress.optimizer.quantization.methods import METHODS, Problem

RNG = np.random.default_rng(4)
K, N = 70, 9  # more inputs than go in one block of GPTQ


def obs(weight, second, scales, zeros, block, nearest):
    """Codes [N, K] of one group: w_F -= (w_k - q_k) [H_F^-1]_k / [H_F^-1]_kk (Hassibi & Stork 1993, equation 5)."""
    left = weight.astype(np.float64)
    damped = second.astype(np.float64) + 0.01 * np.trace(second, dtype=np.float64) / len(second) * np.eye(len(second))
    order, codes = np.argsort(-np.diag(second.astype(np.float64)), kind="stable"), np.empty(weight.shape)
    for at, k in enumerate(order):
        remaining = order[at:]
        inverse = np.linalg.inv(damped[np.ix_(remaining, remaining)])
        scale, zero = scales[:, k // block].astype(np.float64), zeros[:, k // block]
        codes[:, k] = nearest(left[:, k] / scale + zero)
        lost = left[:, k] - (codes[:, k] - zero) * scale
        left[:, remaining] -= np.outer(lost / inverse[0, 0], inverse[0])
    return codes


def moments(rows=400, seed=0):
    """Of a float path y, and of a path x of rounded weights."""
    rng = np.random.default_rng(seed)
    mix, spread = np.random.default_rng(1).standard_normal((2, K, K))
    y = rng.standard_normal((rows, K)) @ mix
    x = y + 0.3 * rng.standard_normal((rows, K)) @ spread
    second, cross, floats = ((a.T @ b / rows).astype(np.float32)[None] for a, b in ((x, x), (x, y), (y, y)))
    return InputMoments(second, rows, cross, floats)


def assert_same(found, wanted, scheme):
    """But for weights that lie, in one or the other arithmetic, a hair from the middle of two codes."""
    codes = found.code_rows().astype(np.float64)
    numbers = codes if scheme.integer else scheme.number_format.decode(found.code_rows())
    assert np.mean(numbers != wanted) < 0.01


@pytest.mark.parametrize("name", ["int4", "int3", "int2", "fp4", "nf4"])
def test_gptq(name):
    scheme = Recipe(scheme=name, block_size=32).settings("", "MatMul").weight
    weight, learned = RNG.standard_normal((N, K)).astype(np.float32), moments()
    found = METHODS["gptq"].round(Problem(weight, scheme, learned, moments(seed=1)))
    wanted = obs(weight, learned.second[0], found.scales, zeros_of(found, scheme), 32, nearest_of(scheme))
    assert_same(found, wanted, scheme)
    plain = obs(
        weight, np.diag(np.diag(learned.second[0])), found.scales, zeros_of(found, scheme), 32, nearest_of(scheme)
    )
    with pytest.raises(AssertionError):
        assert_same(found, plain, scheme)


@pytest.mark.parametrize("name", ["int4", "int3", "nf4"])
def test_qronos(name):
    """The same of the weights that least squares aim at, by the share of the step that is best on other rows."""
    scheme = Recipe(scheme=name, block_size=32).settings("", "MatMul").weight
    weight, learned, apart = RNG.standard_normal((N, K)).astype(np.float32), moments(), moments(seed=1)
    found = METHODS["qronos"].round(Problem(weight, scheme, learned, apart))
    second, rows = learned.second[0].astype(np.float64), weight.astype(np.float64)
    damped = second + 0.01 * np.trace(second) / K * np.eye(K)
    step = rows @ (learned.cross[0].T - second) @ np.linalg.inv(damped)
    share = np.sum((rows @ (apart.cross[0].T - apart.second[0])) * step) / np.sum((step @ apart.second[0]) * step)
    assert 0.1 < share <= 1
    target = rows + min(share, 1) * step
    wanted = obs(target, learned.second[0], found.scales, zeros_of(found, scheme), 32, nearest_of(scheme))
    assert_same(found, wanted, scheme)


def zeros_of(found, scheme):
    return found.zero_points.astype(np.float64) if scheme.integer else np.zeros(found.scales.shape)


def nearest_of(scheme):
    if scheme.integer:
        return lambda x: np.clip(np.rint(x), 0, 2**scheme.bits - 1)
    return lambda x: scheme.number_format.round(x.astype(np.float32))


def test_the_factor_is_that_of_the_damped_inverse():
    """H^-1 = U'U, and U is upper triangular."""
    second = moments().second
    U = gptq.inverse_factor(second)[0]
    damped = second[0].astype(np.float64) + 0.01 * np.trace(second[0].astype(np.float64)) / K * np.eye(K)
    assert (np.tril(U, -1) == 0).all()
    np.testing.assert_allclose(U.T @ U @ damped, np.eye(K), atol=1e-8)
