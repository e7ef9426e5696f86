"""Mean errors of rounded weights, against the products themselves."""

from __future__ import annotations

import numpy as np
import pytest
from int8 import int8_weight
from onnxpress.optimizer.quantization.bias_correction import bias_shift
from onnxpress.optimizer.quantization.moments import Moments, restoring_map


def rounded(weight):
    return int8_weight(weight, 0).values()


def test_a_matrix():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((7, 33)).astype(np.float32)
    x = rng.standard_normal((500, 33)) * 0.3 + rng.uniform(1, 3, 33)
    back = rounded(weight)
    shift = bias_shift(weight, back, x.mean(axis=0))
    error = x @ back.T - x @ weight.T
    np.testing.assert_allclose(shift, error.mean(axis=0), rtol=1e-4, atol=1e-7)


def test_a_conv_of_groups():
    """Channels that are constant over space, so that the sum over the kernel is that of a matrix."""
    rng = np.random.default_rng(1)
    groups, weight = 3, rng.standard_normal((6, 2, 3, 3)).astype(np.float32)
    means = rng.standard_normal(6)
    back = rounded(weight)
    wrong = (back - weight).sum(axis=(2, 3))
    want = [sum(wrong[n, c] * means[(n // 2) * 2 + c] for c in range(2)) for n in range(6)]
    np.testing.assert_allclose(bias_shift(weight, back, means, groups), want, rtol=1e-4, atol=1e-7)


def test_shapes_that_do_not_belong_together():
    with pytest.raises(ValueError, match="means of shape"):
        bias_shift(np.ones((2, 3)), np.ones((2, 3)), np.ones(4))
    with pytest.raises(ValueError, match="weights of shapes"):
        bias_shift(np.ones((2, 3)), np.ones((3, 2)), np.ones(3))


def test_the_map_restores_moments():
    rng = np.random.default_rng(2)
    want, have = (
        rng.standard_normal((n, 4)) * sizes for n, sizes in ((10**6, [1, 2, 3, 4]), (10**6, [1.2, 1.9, 3, 5]))
    )
    factor, offset = restoring_map(Moments.of(want + 1, 1), Moments.of(have, 1))
    mended = Moments.of(have * factor + offset, 1)
    np.testing.assert_allclose(mended.channel_mean, np.mean(want + 1, axis=0))
    np.testing.assert_allclose(mended.channel_std, want.std(axis=0), rtol=1e-3)  # all but 500 parts of 10^6


def test_few_values_are_not_believed():
    """Two samples of one distribution: to give one the deviations of the other fits noise."""
    rng = np.random.default_rng(3)
    want, have = (Moments.of(rng.standard_normal((100, 50)), 1) for _ in range(2))
    factor, offset = restoring_map(want, have)
    noise = want.channel_std / have.channel_std - 1
    np.testing.assert_allclose(factor - 1, noise / 6)
    np.testing.assert_allclose(offset, want.channel_mean - factor * have.channel_mean)
    alone, _ = restoring_map(want, have, mean_alone=True)
    assert (alone == 1).all()


def test_channels_without_a_sound_deviation_get_their_mean():
    want = Moments(np.array([1.0, 2, 3]), np.array([1.0, 5, 1]), 3000)
    factor, offset = restoring_map(want, Moments(np.zeros(3), np.array([0.0, 1, 1]), 3000))
    assert factor.tolist() == [1, 1, 1]
    assert offset.tolist() == [1, 2, 3]
    assert restoring_map(want, Moments(np.array([np.nan, 0, 0]), np.ones(3), 3000)) is None
    assert restoring_map(want, Moments(np.zeros(2), np.ones(2), 3000)) is None


def test_moments_of_parts_merge_to_those_of_the_whole():
    x = np.random.default_rng(0).standard_normal((7, 5, 3, 2)) * 3 + 100  # far from zero, where squares would cancel
    parts = [Moments.of(part.astype(np.float32)) for part in (x[:1], x[1:1], x[1:4], x[4:])]
    found = parts[0]
    for part in parts[1:]:
        found = found.merge(part)
    assert found.count == x.size
    np.testing.assert_allclose(found.channel_mean, x.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(found.channel_std, x.std(axis=(0, 2, 3)), rtol=1e-4)
