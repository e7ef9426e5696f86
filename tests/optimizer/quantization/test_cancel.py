"""Errors that cancel: what is minimised, against all choices there are, and that only neighbours are taken."""

import itertools
import math

import numpy as np
import pytest
from onnxpress.optimizer.quantization.cancel import cancel
from onnxpress.optimizer.quantization.formats import FORMATS

RNG = np.random.default_rng(8)
NAMES = ["nf4", "e2m1", "e4m3fn", "e2m3", "e5m2"]


def rounded(x, name, block):
    """Plain rounding in blocks along the rows, and the scales."""
    each = FORMATS[name]
    scales = np.repeat(np.abs(x).reshape(len(x), -1, block).max(axis=2) / np.float32(each.max), block, axis=1)
    return each.round(x / scales), scales


def cost(numbers, x, scales):
    error = numbers * scales.astype(np.float64) - x
    return np.square(error).sum(axis=1) + error.sum(axis=1) ** 2 / (math.pi - 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_sum_of_a_channel_goes_and_its_squares_stay(name):
    x = RNG.standard_t(4, (50, 288)).astype(np.float32)
    nearest, scales = rounded(x, name, 32)
    found = cancel(nearest, x, scales, FORMATS[name].ascending)
    before, after = nearest * scales - x, found * scales - x
    assert (cost(found, x, scales) <= cost(nearest, x, scales)).all()
    assert np.square(after.sum(axis=1)).mean() < 0.02 * np.square(before.sum(axis=1)).mean()
    assert np.square(after).sum() < 1.02 * np.square(before).sum()
    places = (np.searchsorted(FORMATS[name].ascending, each) for each in (found, nearest))
    assert np.abs(np.subtract(*places)).max() == 1


def test_it_comes_near_to_the_best_choice():
    """Of all neighbours that bring the sum down, by brute force."""
    values = FORMATS["nf4"].ascending
    ratios = []
    for _ in range(40):
        x = RNG.standard_normal((1, 9)).astype(np.float32)
        nearest, scales = rounded(x, "nf4", 9)
        places, sign = np.searchsorted(values, nearest[0]), np.sign((nearest * scales - x).sum())
        moved = np.clip(places - int(sign), 0, len(values) - 1)
        tried = [np.where(chosen, moved, places) for chosen in itertools.product((False, True), repeat=9)]
        best = min(cost(values[each][None], x, scales)[0] for each in tried)
        found = cost(cancel(nearest, x, scales, values), x, scales)[0]
        assert found >= 0.999 * best
        ratios.append((found / best, cost(nearest, x, scales)[0] / best))
    ours, plain = np.mean(ratios, axis=0)
    assert ours - 1 < (plain - 1) / 4


def test_what_is_exact_stays_and_ends_have_no_neighbour():
    values = FORMATS["e2m1"].ascending
    scales = np.ones((3, 4), np.float32)
    exact = np.float32([[0, 1, -6, 0.5], [0, 0, 0, 0], [6, 6, 6, 6]])
    np.testing.assert_array_equal(cancel(exact, exact, scales, values), exact)
    beyond = exact[2:] + 1  # all errors are -1, and there is nothing above
    np.testing.assert_array_equal(cancel(exact[2:], beyond, scales[2:], values), exact[2:])


def test_no_size_overflows():
    values = FORMATS["e4m3fn"].ascending
    for size in (1e-38, 1e34):
        x = (RNG.uniform(-3, 3, (4, 64)) * size).astype(np.float32)
        scales = np.full(x.shape, np.abs(x).max() / 448, np.float32)
        nearest = FORMATS["e4m3fn"].round(x / scales)
        with np.errstate(over="raise", invalid="raise"):
            assert np.isin(cancel(nearest, x, scales, values), values).all()
