"""Scales per input: the product stays, and what rounding costs is least among the exponents."""

from __future__ import annotations

import numpy as np
import pytest
from onnxpress.optimizer import Recipe
from onnxpress.optimizer.quantization.input_moments import InputMoments
from onnxpress.optimizer.quantization.methods import METHODS, Problem
from onnxpress.optimizer.quantization.transforms.awq import awq_scales, scaled

RNG = np.random.default_rng(10)


def problems(scheme, spread, count=2, K=64):
    """Weights that read inputs whose sizes differ by some powers of e."""
    sizes = np.exp(spread * RNG.standard_normal(K))
    inputs = (RNG.standard_normal((400, K)) @ (np.eye(K) + 0.1 * RNG.standard_normal((K, K)))) * sizes
    inputs[:, 3] = 0
    moments = InputMoments(np.float32(inputs.T @ inputs / len(inputs))[None], len(inputs))
    weights = Recipe(scheme=scheme).settings("", "MatMul").weight
    rows = [RNG.standard_normal((16, K)).astype(np.float32) for _ in range(count)]
    return inputs.astype(np.float32), [Problem(each, weights, moments, moments) for each in rows]


def lost(inputs, problem, scales):
    """Squares of what the product of data changes by, in the original units."""
    rounded = METHODS["search"].round(scaled(problem, scales)).decoded(problem.scheme, problem.rows.shape[1])
    return float(np.square((inputs / scales) @ rounded.T - inputs @ problem.rows.T).sum() / len(inputs))


@pytest.mark.parametrize("scheme", ["int4", "int3", "nf4", "mxfp4"])
def test_the_best_of_the_exponents_is_taken(scheme):
    inputs, given = problems(scheme, 1.0)
    scales = awq_scales(given, METHODS["search"])
    assert (scales > 0).all()
    square = np.mean(np.square(inputs, dtype=np.float64), axis=0)
    size = np.sqrt(np.maximum(square, 1e-4 * square.mean()))
    size /= np.exp(np.log(size).mean())
    tried = [sum(lost(inputs, each, np.float32(size**a)) for each in given) for a in np.linspace(0, 1, 21)]
    assert sum(lost(inputs, each, scales) for each in given) == pytest.approx(min(tried), rel=1e-3)
    if scheme != "mxfp4":  # whose scales are powers of two: what is multiplied moves by chance
        assert min(tried) < 0.97 * tried[0]


def test_the_scaled_product_is_the_product():
    inputs, (given,) = problems("int4", 2.0, count=1)
    scales = np.exp(RNG.standard_normal(64)).astype(np.float32)
    changed = scaled(given, scales)
    np.testing.assert_allclose((inputs / scales) @ changed.rows.T, inputs @ given.rows.T, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(
        changed.moments.second[0], (inputs / scales).T @ (inputs / scales) / len(inputs), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("scheme", ["int4", "nf4"])
def test_inputs_that_carry_the_same_have_no_scales(scheme):
    weights = Recipe(scheme=scheme).settings("", "MatMul").weight
    for second in (np.eye(32), np.zeros((32, 32))):
        moments = InputMoments(second.astype(np.float32)[None], 1)
        given = Problem(RNG.standard_normal((8, 32)).astype(np.float32), weights, moments, moments)
        np.testing.assert_array_equal(awq_scales([given], METHODS["search"]), np.ones(32, np.float32))


def test_groups_have_inputs_of_their_own():
    weights = Recipe(scheme="nf4").settings("", "Conv").weight
    moments = InputMoments(np.ones((2, 9, 9), np.float32), 1)
    with pytest.raises(ValueError, match="several groups"):
        awq_scales([Problem(np.ones((4, 9), np.float32), weights, moments, moments)], METHODS["search"])
