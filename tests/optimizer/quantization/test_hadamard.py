"""Orthogonal matrices: what they are, and what they do to rows, against plain products."""

from __future__ import annotations

import numpy as np
import pytest
from onnxpress.optimizer.quantization.transforms import hadamard
from onnxpress.optimizer.quantization.transforms.hadamard import orthogonal

HADAMARD = (1, 2, 4, 12, 16, 20, 28, 36, 60, 64, 80, 96, 128, 200, 768, 896)
OTHERS = (3, 7, 34, 49, 92)


def dense(size, **settings):
    return orthogonal(size, **settings).turn(np.eye(size))


@pytest.mark.parametrize("keeps_mean", [False, True])
@pytest.mark.parametrize("size", [*HADAMARD, *OTHERS])
def test_columns_are_orthonormal(size, keeps_mean):
    Q = dense(size, keeps_mean=keeps_mean)
    np.testing.assert_allclose(Q @ Q.T, np.eye(size), atol=1e-12)
    if keeps_mean:
        np.testing.assert_allclose(Q.sum(0), np.ones(size), atol=1e-12)


@pytest.mark.parametrize("size", HADAMARD)
def test_entries_are_of_one_magnitude(size):
    np.testing.assert_allclose(np.abs(dense(size)), size**-0.5, rtol=1e-12)
    assert orthogonal(size).is_hadamard


@pytest.mark.parametrize("size", OTHERS)
def test_where_there_is_no_hadamard_matrix_no_entry_is_large(size):
    assert not orthogonal(size).is_hadamard
    assert np.abs(dense(size)).max() * size**0.5 < 5


def test_outliers_go():
    x = np.zeros(896)
    x[17] = 1.0
    for keeps_mean in (False, True):
        assert np.abs(orthogonal(896, keeps_mean=keeps_mean).turn(x)).max() < 5 * 896**-0.5


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("times", [1, 3])
def test_turning_along_an_axis_is_a_product(axis, times, monkeypatch):
    monkeypatch.setattr(hadamard, "_PIECE", 200)  # some rows at a time
    rng = np.random.default_rng(0)
    array = rng.standard_normal((12 * times, 12 * times)).astype(np.float32)
    scale = rng.uniform(0.5, 2, 12)
    Q = np.kron(np.eye(times), dense(12))
    for factor in (None, scale):
        rows = array.T if axis == 0 else array
        wanted = (rows * np.tile(np.ones(12) if factor is None else factor, times)) @ Q
        found = array.copy()
        assert orthogonal(12).turn_along(found, axis, factor) is found
        np.testing.assert_allclose(found, wanted.T if axis == 0 else wanted, rtol=1e-6, atol=1e-7)


def test_it_is_the_same_each_time():
    for size in (28, 34):
        assert dense(size).tobytes() == dense(size).tobytes()
    assert not np.array_equal(orthogonal(28).signs, np.ones(28))
