"""Ranges: bounds that hold for any data, and the best ones where those are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxpress.optimizer.calibration.histogram import occupied
from onnxpress.optimizer.calibration.ranges import METHODS, activation_range, squared_error, unusable
from onnxpress.optimizer.calibration.statistics import StatisticsSpec, TensorStatistics
from onnxpress.optimizer.errors import UsageError
from onnxpress.optimizer.quantization.affine import parameters_of_range

GENERATOR = np.random.default_rng


def seen(*batches) -> TensorStatistics:
    statistics = TensorStatistics()
    for batch in batches:
        statistics.update(np.asarray(batch, np.float32))
    return statistics


def mean_error(x: np.ndarray, bounds, levels: int = 256) -> float:
    """The mean squared error of values rounded as the module says."""
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    step = (high - low) / (levels - 1)
    zero = round(-low / step)
    codes = np.clip(np.rint(x.astype(np.float64) / step) + zero, 0, levels - 1)
    return float(np.square(x - (codes - zero) * step).mean())


def relu(count=60_000, tail=1.0, seed=0):
    """Half zeros, half normal, and twenty values that are twenty times as large."""
    g = GENERATOR(seed)
    x = np.maximum(g.standard_normal(count), 0)
    x[:: count // 20] *= 20 * tail
    return x.astype(np.float32)


KINDS = {
    "normal": lambda: GENERATOR(1).standard_normal(30_000),
    "laplace": lambda: GENERATOR(2).laplace(size=30_000),
    "relu": relu,
    "gelu": lambda: (x := GENERATOR(3).standard_normal(30_000) * 2) / (1 + np.exp(-1.702 * x)),
    "sigmoid": lambda: 1 / (1 + np.exp(-GENERATOR(4).standard_normal(30_000))),
    "skewed": lambda: np.exp(GENERATOR(5).standard_normal(30_000)) - 0.2,
    "negative": lambda: -relu(),
    "outlier": lambda: np.append(GENERATOR(6).standard_normal(30_000), [1000.0]),
}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_least_squares_finds_the_least(kind, symmetric):
    x = np.asarray(KINDS[kind](), np.float32)
    low, high = float(x.min()), float(x.max())
    for levels in (16, 256):
        found = activation_range(seen(x), "mse", symmetric=symmetric, levels=levels)
        shares = np.geomspace(1, 1 / 1024, 60)
        if symmetric:
            most = max(-low, high)
            tried = [(-most * share, most * share) for share in shares]
        else:
            coarse = shares[::3]
            tried = [(low * a, high * b) for a in (coarse if low < 0 else [1]) for b in (coarse if high > 0 else [1])]
        best = min(mean_error(x, bounds, levels) for bounds in tried)
        assert mean_error(x, found, levels) <= 1.05 * best


def test_least_squares_of_a_normal_distribution_is_that_of_max():
    # J. Max, "Quantizing for minimum distortion", 1960: 16 levels of a normal distribution are 0.3352 apart.
    x = GENERATOR(0).standard_normal(1_000_000)
    low, high = activation_range(seen(x), "mse", levels=16, symmetric=True)
    assert (high - low) / 15 == pytest.approx(0.3352, rel=0.03)


def test_squared_error_is_the_integral():
    x = GENERATOR(0).standard_normal(50_000).astype(np.float32)
    edges, counts = occupied(seen(x).histogram)
    for bounds in ((-4.0, 4.0), (-0.5, 2.0), (0.3, 1.0), (-2.0, -1.0)):
        for levels in (4, 256):
            middles = (edges[:-1, None] + (np.arange(64) + 0.5) / 64 * np.diff(edges)[:, None]).ravel()
            expected = mean_error(np.repeat(middles, np.repeat(counts, 64)), bounds, levels) * counts.sum()
            assert squared_error(edges, counts, bounds, levels) == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("method", ["entropy", "mse", "percentile"])
def test_zeros_of_a_relu_do_not_matter(method):
    x = relu(200_000)
    low, high = activation_range(seen(x), method, levels=64)
    assert (low, x.max() > 30) == (0.0, True)
    # A normal half needs some 3 to 5; the tail reaches 40, and squares give it weight.
    assert 2.5 < high < 20
    more = np.append(x, np.zeros(9 * len(x), np.float32))
    if method != "percentile":
        assert activation_range(seen(more), method, levels=64) == (low, high)


def test_entropy_keeps_what_it_can_show():
    # Evenly spread values lose by any clipping, and lone outliers of many values are dropped.
    x = GENERATOR(0).uniform(-1, 1, 1_000_000)
    low, high = activation_range(seen(x), "entropy")
    assert high - low > 1.95
    tail = np.append(GENERATOR(0).standard_normal(1_000_000), [30.0])
    low, high = activation_range(seen(tail), "entropy")
    assert -6 < low < -3
    assert 3 < high < 12


def test_percentile_cuts_half_at_each_end():
    x = np.arange(-10_000, 10_001) / 100
    low, high = activation_range(seen(x), "percentile", percentile=98)
    assert (low, high) == (pytest.approx(-98, abs=0.1), pytest.approx(98, abs=0.1))
    assert activation_range(seen(x), "percentile", percentile=100) == (-100, 100)
    low, high = activation_range(seen(np.abs(x)), "percentile", percentile=98)
    assert (low, high) == (pytest.approx(1, abs=0.1), pytest.approx(99, abs=0.1))
    low, high = activation_range(seen(np.append(x, np.zeros(20_000))), "percentile", percentile=50, symmetric=True)
    assert (low, high) == (-high, pytest.approx(0, abs=0.1))


def test_moving_average():
    statistics = seen([-1, 1], [-2, 3])
    assert activation_range(statistics, "moving-average") == (pytest.approx(-1.1), pytest.approx(1.2))
    assert activation_range(statistics, "moving-average", symmetric=True) == (pytest.approx(-1.2), pytest.approx(1.2))


numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=40), st.booleans(), st.sampled_from([4, 255, 256]))
def test_ranges_lie_within_what_was_seen(values, symmetric, levels):
    statistics = seen(values)
    most = statistics.absmax
    for method in METHODS:
        low, high = activation_range(statistics, method, symmetric=symmetric, levels=levels)
        assert math.isfinite(low)
        assert low <= high
        if symmetric:
            assert low == -high
            assert 0 <= high <= most
        else:
            assert statistics.low <= low <= high <= statistics.high
        assert activation_range(statistics, method, symmetric=symmetric, levels=levels) == (low, high)
        if unusable(statistics) is None:
            parameters = parameters_of_range(low, high, np.uint8)
            assert parameters.scale > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 3.5, -2.0, 1e-30])
def test_constants(method, value):
    statistics = seen(np.full(100, value))
    exact = float(np.float32(value))
    assert unusable(statistics) is None
    assert activation_range(statistics, method) == (exact, exact)
    low, high = activation_range(statistics, method, symmetric=True)
    assert low == -high
    assert abs(exact) * 0.97 <= high <= abs(exact)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([1, np.nan], "it holds NaN or infinity"),
        ([1, -np.inf], "it holds NaN or infinity"),
        ([], "no value of it was seen"),
        ([1, 1e30], r"its values reach 1\.0e\+30"),
        ([0, np.finfo(np.float32).min], r"its values reach 3\.4e\+38"),
    ],
)
def test_what_cannot_be_rounded(values, reason):
    import re

    statistics = seen(values)
    assert re.search(reason, unusable(statistics) or "")
    for method in METHODS:
        assert all(map(math.isfinite, activation_range(statistics, method)))


def test_wrong_requests():
    for arguments in ({"method": "max"}, {"method": "percentile", "percentile": 0}, {"method": "mse", "levels": 1}):
        with pytest.raises(UsageError):
            activation_range(seen([1, 2]), **arguments)
    plain = TensorStatistics(StatisticsSpec(histogram=False))
    plain.update(np.array([1, 2], np.float32))
    assert activation_range(plain, "minmax") == (1, 2)
    with pytest.raises(UsageError, match="needs a histogram"):
        activation_range(plain, "mse")
