"""Histograms: exact bins, exact merging."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxpress.optimizer.calibration.histogram import LEAST_EXPONENT, SIDE, Histogram, exponent_of, occupied


def counted(*parts) -> Histogram:
    histogram = Histogram()
    for part in parts:
        part = np.asarray(part, np.float32)
        histogram.update(part, float(np.abs(part).max()))
    return histogram


def same(a: Histogram, b: Histogram) -> bool:
    return a.exponent == b.exponent and a.zeros == b.zeros and np.array_equal(a.counts, b.counts)


def test_bins_are_those_of_numpy():
    x = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    histogram = counted(x)
    assert histogram.exponent == 3
    assert same(histogram, counted(*np.array_split(x, 7)))
    np.testing.assert_array_equal(histogram.counts, np.histogram(x.astype(np.float64), histogram.edges)[0])


def test_edges_belong_to_the_bin_above():
    width = 2.0 / SIDE
    histogram = counted([1.0, -width, width, -0.0, 0.0, -2 * width + 1e-6, np.nextafter(np.float32(0), np.float32(-1))])
    filled = {int(i) - SIDE: int(histogram.counts[i]) for i in np.flatnonzero(histogram.counts)}
    assert filled == {SIDE // 2: 1, -1: 2, 1: 1, 0: 2, -2: 1}
    assert histogram.zeros == 2
    assert histogram.nonzero.sum() == 5


@pytest.mark.parametrize("x", [0.0, 1e-45, 1.0, 1.9999999, 2.0, 1e30, float(np.finfo(np.float32).max)])
def test_every_magnitude_fits(x):
    for value in (x, -x):
        histogram = counted([value])
        assert histogram.counts.sum() == 1
        index = int(np.flatnonzero(histogram.counts)[0])
        if abs(value) >= 2.0**LEAST_EXPONENT:
            assert histogram.edges[index] <= np.float32(value) < histogram.edges[index + 1]


def test_exponents():
    assert [exponent_of(x) for x in (0.0, 0.5, 0.99, 1.0, 2.0)] == [LEAST_EXPONENT, 0, 0, 1, 2]
    assert exponent_of(math.ldexp(1, -140)) == LEAST_EXPONENT


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1), min_size=2, max_size=4)
)
def test_parts_add_up_in_any_order(parts):
    whole = counted([x for part in parts for x in part])
    assert same(whole, counted(*parts))
    apart = [counted(part) for part in parts]
    forward, backward = apart[0], apart[-1]
    for one in apart[1:]:
        forward = forward.merge(one)
    for one in apart[-2::-1]:
        backward = one.merge(backward)
    assert same(whole, forward)
    assert same(whole, backward)


def test_merging_leaves_both_alone():
    a, b = counted([1.0, 0.0]), counted([100.0])
    before = a.counts.copy(), b.counts.copy()
    a.merge(b)
    b.merge(a)
    assert np.array_equal(a.counts, before[0])
    assert np.array_equal(b.counts, before[1])


def test_occupied_leaves_zeros_and_empty_ends_out():
    edges, counts = occupied(counted([0.0, 0.0, 1.0, 1.5]))
    assert counts.sum() == 2
    assert counts[0] == counts[-1] == 1
    assert edges[0] == 1.0
    assert len(edges) == len(counts) + 1
