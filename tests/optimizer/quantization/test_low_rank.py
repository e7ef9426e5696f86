"""Products of low rank beside rounded weights, against optima that are found in other ways."""

from __future__ import annotations

import numpy as np
import pytest
from onnxpress.optimizer.quantization import blas, gptq, low_rank
from onnxpress.optimizer.quantization.low_rank import CompensatedWeight, LowRank, fit_low_rank, round_low_rank
from onnxpress.optimizer.quantization.round_weight import round_weight
from onnxpress.optimizer.quantization.schemes import int8_weights, weight_scheme

SHAPES = [(12, 20), (20, 12), (16, 16)]
"""Outputs and inputs."""


def second_moments(K, rows=400, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, K)) * np.geomspace(1, 0.03, K) @ np.linalg.qr(rng.standard_normal((K, K)))[0]
    return (x.T @ x / rows).astype(np.float32)


def loss(error, product, second):
    left = np.float64(error) - product
    return np.trace(left @ np.float64(second) @ left.T)


def as_published(error, rank, second):
    """R^(-1/2) SVD_r(R^(1/2) E'), with the symmetric root."""
    values, vectors = np.linalg.eigh(np.float64(second))
    root, inverse = (vectors * values**power @ vectors.T for power in (0.5, -0.5))
    u, s, v = np.linalg.svd(root @ np.float64(error).T)
    return (inverse @ (u[:, :rank] * s[:rank]) @ v[:rank]).T


@pytest.fixture
def undamped(monkeypatch):
    monkeypatch.setattr(gptq, "_DAMPING", 1e-12)


@pytest.mark.usefixtures("undamped")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 4, 12])
def test_it_is_the_published_product(shape, rank):
    error = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    second = second_moments(shape[1])
    inner, outer = fit_low_rank(error, rank, second)
    assert (inner.shape, outer.shape) == ((shape[1], rank), (rank, shape[0]))
    wanted = as_published(error, rank, second)
    np.testing.assert_allclose((inner @ outer).T, wanted, atol=2e-3 * np.abs(wanted).max())


@pytest.mark.usefixtures("undamped")
@pytest.mark.parametrize("shape", SHAPES)
def test_no_other_product_loses_less(shape):
    """Neither nearby ones, nor what alternating least squares finds from anywhere."""
    rng = np.random.default_rng(2)
    error, second = rng.standard_normal(shape).astype(np.float32), second_moments(shape[1])
    inner, outer = fit_low_rank(error, 3, second)
    least = loss(error, (inner @ outer).T, second)
    for scale in (1e-1, 1e-2, 1e-3):
        for _ in range(20):
            moved = inner + scale * rng.standard_normal(inner.shape), outer + scale * rng.standard_normal(outer.shape)
            assert loss(error, (moved[0] @ moved[1]).T, second) > least
    R, E, b = np.float64(second), np.float64(error), rng.standard_normal((shape[0], 3))
    for _ in range(2000):
        a = np.linalg.solve(b.T @ b, b.T @ E)
        b = E @ R @ a.T @ np.linalg.inv(a @ R @ a.T)
    assert loss(error, b @ a, second) == pytest.approx(least, rel=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_data_it_is_the_truncated_svd(shape):
    error = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    u, s, v = np.linalg.svd(np.float64(error))
    inner, outer = fit_low_rank(error, 5)
    np.testing.assert_allclose((inner @ outer).T, u[:, :5] * s[:5] @ v[:5], atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_moments_leave_it_finite_and_helpful(shape):
    """Inputs in three dimensions alone: rank 3 gives all back, and nothing is blown up beside them."""
    x = np.random.default_rng(4).standard_normal((50, 3)) @ np.random.default_rng(5).standard_normal((3, shape[1]))
    second = (x.T @ x / 50).astype(np.float32)
    error = np.random.default_rng(6).standard_normal(shape).astype(np.float32)
    inner, outer = fit_low_rank(error, 3, second)
    assert loss(error, (inner @ outer).T, second) < 0.05 * loss(error, 0, second)
    assert np.linalg.norm(inner @ outer) <= np.linalg.norm(error) * (1 + 1e-6)
    for nothing in (np.zeros_like(error), error[:1].repeat(shape[0], 0)):
        product = np.matmul(*fit_low_rank(nothing, 4, second)).T
        np.testing.assert_allclose(product, nothing, atol=1e-4)


@pytest.mark.parametrize("rank", [0, -1, 13])
def test_ranks_that_there_are_not(rank):
    with pytest.raises(ValueError, match=f"rank {rank} of a weight of 20 outputs and 12 inputs"):
        fit_low_rank(np.zeros((20, 12), np.float32), rank)


def test_it_does_not_depend_on_threads():
    get, change = blas._controls()
    before, found = get(), []
    error = np.random.default_rng(7).standard_normal((256, 192)).astype(np.float32)
    try:
        for threads in (1, 2):
            change(threads)
            found.append([each.tobytes() for each in fit_low_rank(error, 16, second_moments(192))])
    finally:
        change(before)
    assert found[0] == found[1]


def test_parts_of_the_outputs(monkeypatch):
    error = np.random.default_rng(8).standard_normal((40, 12)).astype(np.float32)
    whole = np.matmul(*fit_low_rank(error, 4, second_moments(12)))
    monkeypatch.setattr(low_rank, "_ROWS", 7)
    np.testing.assert_allclose(np.matmul(*fit_low_rank(error, 4, second_moments(12))), whole, atol=1e-5)


@pytest.mark.parametrize("in_blocks", [True, False])
def test_a_rounded_product_beside_a_rounded_weight(in_blocks):
    rng = np.random.default_rng(9)
    rows = rng.standard_normal((96, 160)).astype(np.float32)
    found = round_weight(rows, 0, weight_scheme("int3", 32, None, True, None, True))
    scheme = weight_scheme("int8", 16, None, True, None, True) if in_blocks else int8_weights()
    inner, outer = fit_low_rank(rows - found.rows(), 16)
    product = round_low_rank(inner, outer, (scheme, scheme))
    assert isinstance(product, LowRank)
    assert product.rank == 16
    exact = (inner @ outer).T
    assert np.square(product.rows() - exact).sum() < 2e-3 * np.square(exact).sum()
    both = CompensatedWeight(found, product)
    assert np.square(both.rows() - rows).sum() < np.square(found.rows() - rows).sum()
    np.testing.assert_allclose(both.part(slice(8, 24)).rows(), both.rows()[8:24], atol=1e-6)
