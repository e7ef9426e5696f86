"""Scales per input: the product stays, rounding costs less, and each transform finds what its paper says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from onnxpress.optimizer import Recipe
from onnxpress.optimizer.quantization.input_moments import InputMoments
from onnxpress.optimizer.quantization.methods import METHODS, Problem
from onnxpress.optimizer.quantization.transforms import TRANSFORMS, Group
from onnxpress.optimizer.quantization.transforms.awq import awq_scales
from onnxpress.optimizer.quantization.transforms.smoothquant import smoothquant_scales
from onnxpress.optimizer.quantization.transforms.teq import slope, teq_scales
from onnxpress.optimizer.quantization.transforms.transform import centred

SCHEMES = ["int4", "int3", "nf4", "mxfp4"]


def group(scheme, spread=1.0, count=2, K=64, seed=10, channels=16, **settings):
    """Inputs whose sizes differ by some powers of e, and weights that read them."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(spread * rng.standard_normal(K))
    inputs = (rng.standard_normal((400, K)) @ (np.eye(K) + 0.1 * rng.standard_normal((K, K)))) * sizes
    inputs[:, 3] = 0
    moments = InputMoments(np.float32(inputs.T @ inputs / len(inputs))[None], len(inputs))
    weights = Recipe(scheme=scheme, **settings).settings("", "MatMul").weight
    rows = [rng.standard_normal((channels, K)).astype(np.float32) for _ in range(count)]
    inputs = inputs.astype(np.float32)
    return inputs, Group([Problem(each, weights, moments, moments) for each in rows], np.abs(inputs).max(0))


def lost(inputs, given, scales):
    """Squares of what the products of data change by when the scaled problem is rounded, in the original units."""
    total = 0.0
    for problem in given.problems:
        found = METHODS["search"].round(scaled(problem, scales)).rows()
        total += float(np.square((inputs / scales) @ found.T - inputs @ problem.rows.T).sum() / len(inputs))
    return total


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_cost_is_what_products_lose(scheme):
    inputs, given = group(scheme)
    scales = centred(np.random.default_rng(0).standard_normal(64).astype(np.float32))
    assert given.cost(scales) == pytest.approx(lost(inputs, given, scales), rel=1e-3)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_awq_takes_the_best_of_the_exponents(scheme):
    inputs, given = group(scheme)
    scales = awq_scales(given)
    assert (scales > 0).all()
    square = np.mean(np.square(inputs, dtype=np.float64), axis=0)
    size = np.sqrt(np.maximum(square, 1e-4 * square.mean()))
    size /= np.exp(np.log(size).mean())
    tried = [lost(inputs, given, np.float32(size**a)) for a in np.linspace(0, 1, 21)]
    assert lost(inputs, given, scales) == pytest.approx(min(tried), rel=1e-3)
    if scheme != "mxfp4":  # whose scales are powers of two: what is multiplied moves by chance
        assert min(tried) < 0.97 * tried[0]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_smoothquant_takes_the_best_share(scheme):
    inputs, given = group(scheme)
    largest = np.abs(inputs).max(0).astype(np.float64)
    largest = np.maximum(largest, 1e-4 * largest.max())
    read = np.max([np.abs(problem.rows).max(0) for problem in given.problems], 0).astype(np.float64)
    tried = [lost(inputs, given, np.ones(64, np.float32))]
    for share in np.linspace(0, 1, 11):
        scales = largest**share / read ** (1 - share)
        tried.append(lost(inputs, given, np.float32(scales / np.exp(np.log(scales).mean()))))
    assert lost(inputs, given, smoothquant_scales(given)) == pytest.approx(min(tried), rel=1e-3)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seed", [1, 2])
def test_teq_is_never_worse_than_its_start(scheme, seed):
    inputs, given = group(scheme, seed=seed)
    costs = [given.cost(teq_scales(given, steps)) for steps in (0, 5, 60)]
    start = min(given.cost(awq_scales(given)), given.cost(smoothquant_scales(given)))
    assert costs[0] == pytest.approx(start, rel=1e-6)
    assert costs[0] >= max(costs[1:])
    assert lost(inputs, given, teq_scales(given, 60)) == pytest.approx(costs[2], rel=1e-3)
    if scheme.startswith("int"):
        assert costs[2] < 0.98 * costs[0]


def test_parts_make_up_the_group():
    _, given = group("int4", channels=800)
    assert given.parts == 6
    for index, problem in enumerate(given.problems):
        parts = [given.part(part).problems[index].rows for part in range(6)]
        np.testing.assert_array_equal(np.sort(np.concatenate(parts), 0), np.sort(problem.rows, 0))


def test_teq_learns_from_all_channels():
    """Of which each step sees a part."""
    _, given = group("int3", channels=400)
    assert given.parts > 1
    alone, start = teq_scales(given.part(0)), teq_scales(given, 0)
    assert given.cost(teq_scales(given)) < min(given.cost(alone), given.cost(start))


def surrogate(problem, scales, logarithms):
    """The cost where rounding stays what it is at `scales`, and scales of blocks follow the ranges; number by number.

    Integers with zero points, in blocks that divide K.
    """
    scheme, (N, K) = problem.scheme, problem.rows.shape
    found = METHODS["search"].round(scaled(problem, scales))
    codes = found.code_rows().astype(np.float64)
    moved, at = np.exp(logarithms), scheme.block_size
    change = np.zeros((N, K))
    for n in range(N):
        for block in range(K // at):
            part = slice(block * at, (block + 1) * at)
            before, now = problem.rows[n, part] * scales[part], problem.rows[n, part] * moved[part]
            first, last = before.argmin(), before.argmax()
            spans = [max(x[last], 0) - min(x[first], 0) for x in (before, now)]
            unit = float(found.scales[n, block])
            step = unit * spans[1] / spans[0]
            for k in range(at):
                number = codes[n, block * at + k] - float(found.zero_points[n, block])
                exact = before[k] / unit + float(found.zero_points[n, block])
                if -0.5 <= exact <= 2**scheme.bits - 0.5:
                    there = now[k] + step * (number - before[k] / unit)
                else:
                    there = step * number
                change[n, block * at + k] = there / moved[part][k] - problem.rows[n, block * at + k]
    return float(np.einsum("nk,kl,nl->", change, problem.moments.second[0].astype(np.float64), change))


@pytest.mark.parametrize("scheme", ["int3", "int2"])
def test_the_slope_is_the_derivative_of_a_frozen_rounding(scheme):
    _, given = group(scheme, K=32, count=1, block_size=16)
    (problem,) = given.problems
    problem.rows[0] += 3  # blocks of one sign, where zero is an end
    start = 0.5 * np.random.default_rng(3).standard_normal(32)
    scales = np.exp(start).astype(np.float32)
    cost, down = slope(problem, scales)
    start = np.log(scales.astype(np.float64))
    assert surrogate(problem, scales, start) == pytest.approx(cost, rel=1e-4)
    for k in (0, 7, 15, 16, 31):
        step = 1e-4 * (np.arange(32) == k)
        wanted = (surrogate(problem, scales, start + step) - surrogate(problem, scales, start - step)) / 2e-4
        assert down[k] == pytest.approx(wanted, rel=1e-3, abs=1e-3 * np.abs(down).max())


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("settings", [{"scheme": "fp6"}, {"scheme": "int4", "symmetric": True}, {"scheme": "bfp4"}])
def test_other_formats_and_inputs_that_fill_no_block(transform, settings):
    _, given = group(K=72, **settings)
    scales = transform.find(given)
    assert scales.shape == (72,)
    assert scales.dtype == np.float32
    assert (scales > 0).all()
    assert given.cost(scales) <= given.cost(np.ones(72, np.float32))


def test_the_scaled_product_is_the_product():
    inputs, given = group("int4", 2.0, count=1)
    (problem,) = given.problems
    scales = np.exp(np.random.default_rng(1).standard_normal(64)).astype(np.float32)
    changed = scaled(problem, scales)
    np.testing.assert_allclose((inputs / scales) @ changed.rows.T, inputs @ problem.rows.T, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(
        changed.moments.second[0], (inputs / scales).T @ (inputs / scales) / len(inputs), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("scheme", ["int4", "nf4"])
def test_inputs_that_carry_the_same_have_no_scales(scheme):
    weights = Recipe(scheme=scheme).settings("", "MatMul").weight
    rows = np.random.default_rng(2).standard_normal((8, 32)).astype(np.float32)
    for second in (np.eye(32), np.zeros((32, 32))):
        moments = InputMoments(second.astype(np.float32)[None], 1)
        given = Group([Problem(rows, weights, moments, moments)], second.max(0).astype(np.float32))
        np.testing.assert_array_equal(awq_scales(given), np.ones(32, np.float32))


def test_groups_have_inputs_of_their_own():
    weights = Recipe(scheme="nf4").settings("", "Conv").weight
    moments = InputMoments(np.ones((2, 9, 9), np.float32), 1)
    with pytest.raises(ValueError, match="several groups"):
        Group([Problem(np.ones((4, 9), np.float32), weights, moments, moments)], np.ones(9, np.float32))


def scaled(problem, scales):
    """The same product with weights multiplied and inputs divided by scales [K], on both paths."""
    return dataclasses.replace(
        problem,
        rows=problem.rows * scales,
        moments=_divided(problem.moments, scales),
        apart=_divided(problem.apart, scales),
    )


def _divided(moments, scales):
    inverse = np.reciprocal(scales)

    def divided(matrices):
        return None if matrices is None else matrices * inverse[:, None] * inverse

    return dataclasses.replace(
        moments,
        second=moments.second * inverse[:, None] * inverse,
        cross=divided(moments.cross),
        float_second=divided(moments.float_second),
    )
