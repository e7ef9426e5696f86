"""Compensated rounding costs a product less than rounding to nearest, and takes only codes that there are."""

import itertools

import numpy as np
import pytest
from int8 import int8_weight
from onnxpress.custom_ops import reference
from onnxpress.optimizer import Recipe
from onnxpress.optimizer.quantization import gptq as module
from onnxpress.optimizer.quantization.input_moments import InputMoments
from onnxpress.optimizer.quantization.methods import METHODS, Problem

RNG = np.random.default_rng(5)


def covariance(groups, size):
    """Of inputs that vary much together."""
    rows = RNG.standard_normal((groups, 4 * size, size)) @ (RNG.standard_normal((groups, size, size)) + np.eye(size))
    return rows.transpose(0, 2, 1) @ rows / rows.shape[1]


def gptq(weight, axis, rounded, inputs):
    """A weight of int8 rounded anew on its scales."""
    rows, moments = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1), InputMoments(inputs, 1)
    return METHODS["gptq"].round(Problem(rows, rounded.scheme, moments, moments, start=rounded))


def cost(rounded, weight, inputs, codes=None):
    codes = rounded.integers() if codes is None else codes
    lost = (codes * rounded.scale.reshape(-1, 1) - weight).reshape(len(inputs), -1, inputs.shape[-1])
    return float(np.einsum("gnk,gkl,gnl->", lost, inputs, lost))


@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize("size", [7, 150])  # within a block of inputs and over several
@pytest.mark.parametrize("reduce_range", [False, True])
def test_the_product_gains(groups, size, reduce_range):
    weight = RNG.standard_normal((12, size)).astype(np.float32)
    inputs = covariance(groups, size)
    rounded = int8_weight(weight, 0, reduce_range=reduce_range)
    better = gptq(weight, 0, rounded, inputs)
    assert np.array_equal(better.scale, rounded.scale)
    assert np.abs(better.integers().astype(int)).max() <= (63 if reduce_range else 127)
    gain = 0.9 if size == 7 else 0.6  # few inputs have little to make up with
    assert cost(better, weight, inputs) < gain * cost(rounded, weight, inputs)
    lost = (better.integers() * better.scale[:, None]).astype(np.float64) - weight  # decoded in float32
    np.testing.assert_allclose(better.error.error, np.square(lost).sum(), rtol=1e-6)


def test_inputs_that_vary_alone_are_rounded_to_nearest():
    weight = RNG.standard_normal((5, 90)).astype(np.float32)
    rounded = int8_weight(weight, 0)
    alone = np.diag(RNG.uniform(0.1, 9, 90))[None]
    assert np.array_equal(gptq(weight, 0, rounded, alone).packed, rounded.packed)


def test_it_comes_near_to_the_best_codes():
    """All codes within one of the nearest, by brute force."""
    ratios = []
    for _ in range(20):
        weight, inputs = RNG.standard_normal((1, 6)).astype(np.float32), covariance(1, 6)
        rounded = int8_weight(weight, 0)
        nearest = np.floor(weight / rounded.scale[:, None])
        tried = [nearest + np.array(step) for step in itertools.product((-1, 0, 1, 2), repeat=6)]
        best = min(cost(rounded, weight, inputs, np.clip(codes, -127, 127)) for codes in tried)
        found = cost(gptq(weight, 0, rounded, inputs), weight, inputs)
        assert found >= 0.999 * best
        ratios.append((found / best, cost(rounded, weight, inputs) / best))
    moved, plain = np.median(ratios, axis=0)
    assert moved - 1 < (plain - 1) / 10


def test_a_matrix_and_a_conv_have_their_axes():
    weight = RNG.standard_normal((4, 3, 2, 2)).astype(np.float32)
    inputs = covariance(1, 12)
    conv = gptq(weight, 0, int8_weight(weight, 0), inputs).integers()
    matrix = np.ascontiguousarray(weight.reshape(4, 12).T)
    assert np.array_equal(gptq(matrix, 1, int8_weight(matrix, 1), inputs).integers(), conv.reshape(4, 12).T)


def test_dead_inputs_and_one_scale_in_all():
    weight = RNG.standard_normal((3, 8)).astype(np.float32)
    for per_channel in (True, False):
        rounded = int8_weight(weight, 0, per_channel=per_channel)
        assert np.array_equal(gptq(weight, 0, rounded, np.zeros((1, 8, 8))).packed, rounded.packed)


def problem_of(weight, scheme, inputs):
    moments = InputMoments(inputs.astype(np.float32), 1)
    return Problem(weight, scheme, moments, moments)


def by_gptq(weight, scheme, inputs):
    return METHODS["gptq"].round(problem_of(weight, scheme, inputs))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("scheme", ["int4", "int3", "nf4", "fp4", "fp8", "mxfp4", "bfp4"])
def test_blocks_of_every_format(groups, scheme):
    """It loses less of the product than rounding to nearest with scales by the same data; padding holds zeros."""
    scheme, K = Recipe(scheme=scheme).settings("", "MatMul").weight, 80
    weight = RNG.standard_normal((12, K)).astype(np.float32)
    inputs = covariance(groups, K)
    problem = problem_of(weight, scheme, inputs)
    losses = []
    for method in ("gptq", "search", "rtn"):
        found = METHODS[method].round(problem)
        numbers, padding = decoded(found, scheme, K)
        assert (padding == 0).all()
        np.testing.assert_allclose(found.rows(), numbers, rtol=1e-6)
        lost = (numbers - weight).reshape(groups, -1, K)
        losses.append(np.einsum("gnk,gkl,gnl->", lost, inputs, lost))
        np.testing.assert_allclose(problem.moments.cost(numbers.astype(np.float32), weight), losses[-1], rtol=1e-4)
        np.testing.assert_allclose(found.error.error, np.square(lost).sum(), rtol=1e-5)
    assert losses[0] < 0.8 * min(losses[1:])


def decoded(quantized, scheme, K):
    """The weight, and what pads its last block, over the scale."""
    block = scheme.codes_per_block(K)
    padded = scheme.blocks(K) * block
    codes = reference.unpack_codes(quantized.packed, scheme.bits, block, padded)
    zeros, scales = (np.repeat(each, block, axis=1) for each in (quantized.zero_points, quantized.scales))
    numbers = codes.astype(np.float64) - zeros if scheme.integer else scheme.number_format.decode(codes)
    return (numbers * scales)[:, :K], numbers[:, K:]


def test_blocks_of_zeros_and_pieces_of_a_weight(monkeypatch):
    scheme = Recipe(scheme="int4").settings("", "MatMul").weight
    weight = RNG.standard_normal((9, 64)).astype(np.float32)
    weight[:, 32:] = 0
    whole = by_gptq(weight, scheme, covariance(1, 64))
    numbers, _ = decoded(whole, scheme, 64)
    assert (numbers[:, 32:] == 0).all()
    inputs = covariance(3, 64)
    whole = by_gptq(weight, scheme, inputs)
    monkeypatch.setattr(module, "_CHANNELS", 3)  # one output of each group at a time
    np.testing.assert_array_equal(by_gptq(weight, scheme, inputs).packed, whole.packed)


def test_a_factor_of_many_inputs_is_that_of_few_at_a_time(monkeypatch):
    inputs = covariance(2, 50)
    whole = module.inverse_factor(inputs)
    monkeypatch.setattr(module, "_INVERTED", 7)
    np.testing.assert_allclose(module.inverse_factor(inputs), whole, rtol=1e-9, atol=1e-12)
    damped = inputs + 0.01 * np.einsum("gkk->g", inputs)[:, None, None] / 50 * np.eye(50)
    np.testing.assert_allclose(whole.transpose(0, 2, 1) @ whole, np.linalg.inv(damped), rtol=1e-8, atol=1e-10)
    assert (np.tril(whole, -1) == 0).all()
