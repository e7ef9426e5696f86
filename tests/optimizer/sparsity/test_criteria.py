"""Which blocks go, against what trying all of them gives."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnxpress.optimizer.sparsity import (
    Block,
    allocate,
    expand,
    keep_best,
    magnitude_scores,
    obs_scores,
    output_error,
    reconstruct,
    wanda_scores,
)
from onnxpress.optimizer.sparsity.obs import damped


def gram(K, seed=0):
    """Of correlated inputs with means and scales of their own."""
    rng = np.random.default_rng(seed)
    mixed = np.eye(K) + rng.standard_normal((K, K)) * np.sqrt(0.5 / K)
    x = rng.standard_normal((8 * K, K)) @ mixed * np.exp(0.5 * rng.standard_normal(K))
    return x.T @ x / len(x)


def weight(K, N, seed=1):
    return np.random.default_rng(seed).standard_normal((K, N)).astype(np.float32)


def masked(W, mask, block):
    return np.where(expand(mask, block, W.shape), W, 0)


def exact(W, H, kept):
    """The best weight on the inputs `kept`, as a regression of the outputs on them."""
    root = np.linalg.cholesky(damped(H)).T
    found = np.zeros_like(W)
    found[kept] = np.linalg.lstsq(root[:, kept], root @ W, rcond=None)[0]
    return found


def test_simple_scores():
    W, H, block = weight(6, 4), gram(6), Block(4, 2)
    by_magnitude, by_wanda = magnitude_scores(W, block), wanda_scores(W, H, block)
    part = W[4:6, 2:4].astype(np.float64)  # the last block, half of it beyond K
    assert by_magnitude[1, 1] == pytest.approx((part**2).sum())
    assert by_wanda[1, 1] == pytest.approx((part**2 * np.diag(H)[4:6, None]).sum())


@pytest.mark.parametrize("block", [Block(1, 1), Block(2, 1), Block(1, 3), Block(2, 3)], ids=str)
def test_reconstruction_is_the_regression(block):
    W, H = weight(7, 6), gram(7)
    mask = np.random.default_rng(2).random(block.grid(W.shape)) < 0.5
    mask[0], mask[-1] = True, False
    found = reconstruct(W, H, mask, block)
    whole = expand(mask, block, W.shape)
    assert (found[~whole] == 0).all()
    for output in range(6):
        kept = np.nonzero(whole[:, output])[0]
        np.testing.assert_allclose(found[:, output], exact(W[:, output].astype(np.float64), H, kept), atol=1e-5)
    np.testing.assert_array_equal(found[:, : block.n], W[:, : block.n])  # nothing was removed there


def test_reconstruction_for_another_input_is_the_regression():
    """Of outputs of x on y, a disturbed x; little damping beside so many rows."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((4000, 12))
    y = 0.7 * x + 0.3 * rng.standard_normal((4000, 12))
    W, block = weight(12, 6), Block(2, 3)
    mask = rng.random(block.grid(W.shape)) < 0.6
    found = reconstruct(W, y.T @ y / 4000, mask, block, y.T @ x / 4000)
    for output in range(6):
        kept = np.nonzero(expand(mask, block, W.shape)[:, output])[0]
        want = np.linalg.lstsq(y[:, kept], x @ W[:, output], rcond=None)[0]
        np.testing.assert_allclose(found[kept, output], want, atol=0.02)
    own = reconstruct(W, y.T @ y / 4000, mask, block)
    error, moved = (np.square(y @ V - x @ W).mean() for V in (own, found))
    assert moved < error


@pytest.mark.parametrize("block", [Block(1, 1), Block(2, 1), Block(2, 2)], ids=str)
def test_first_step_removes_the_cheapest_block_there_is(block):
    """Few enough blocks to go one by one; each alone is tried by regression."""
    W, H = weight(6, block.n), gram(6)
    scores = obs_scores(W, H, block)[0]
    costs = []
    for gone in range(len(scores)):
        kept = np.setdiff1d(np.arange(6), np.arange(gone * block.k, (gone + 1) * block.k))
        costs.append(output_error(exact(W.astype(np.float64), H, kept) - W, damped(H)))
    assert np.argmin(scores) == np.argmin(costs)
    assert scores.min() == pytest.approx(min(costs), rel=1e-3)
    # The last to go had stood for all that the output was.
    assert scores.sum() == pytest.approx(output_error(W, damped(H)), rel=0.5)


def test_scores_of_independent_inputs_are_those_of_wanda():
    W, H, block = weight(24, 8), np.diag(np.exp(np.random.default_rng(0).standard_normal(24))), Block(2, 4)
    want = wanda_scores(W, damped(H), block)
    np.testing.assert_allclose(obs_scores(W, H, block), want, rtol=1e-4)


def test_scores_beyond_the_bound_of_inputs_are_costs_alone(monkeypatch):
    from onnxpress.optimizer.sparsity import obs

    W, H, block = weight(16, 4), gram(16), Block(4, 2)
    want = obs_scores(W, H, block).argmin(axis=1)
    monkeypatch.setattr(obs, "_MOST_INPUTS", 8)
    assert (obs_scores(W, H, block).argmin(axis=1) == want).all()


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("block", [Block(4, 4), Block(4, 1), Block(1, 4), Block(1, 16)], ids=str)
def test_second_order_is_the_best(block, sparsity):
    W, H = weight(64, 48), gram(64)
    errors = {}
    for name, scores in {
        "magnitude": magnitude_scores(W, block),
        "wanda": wanda_scores(W, H, block),
        "obs": obs_scores(W, H, block),
    }.items():
        mask = keep_best(scores, sparsity)
        errors[name] = output_error(masked(W, mask, block) - W, H)
        errors[name + " moved"] = output_error(reconstruct(W, H, mask, block) - W, H)
    assert errors["obs moved"] == min(errors.values())
    assert errors["wanda moved"] < errors["wanda"] < errors["magnitude"]


def test_near_the_best_of_all_masks():
    """Two of six blocks stay: all fifteen pairs are tried."""
    for seed in range(5):
        W, H, block = weight(12, 2, seed), gram(12, seed), Block(2, 2)
        errors = []
        for pair in itertools.combinations(range(6), 2):
            mask = np.zeros((1, 6), bool)
            mask[0, list(pair)] = True
            errors.append(output_error(reconstruct(W, H, mask, block) - W, H))
        mask = keep_best(obs_scores(W, H, block), 4 / 6)
        found = output_error(reconstruct(W, H, mask, block) - W, H)
        assert found <= sorted(errors)[4] * 1.0001


def test_inputs_that_never_vary():
    H, W, block = gram(12), weight(12, 4), Block(4, 4)
    H[:4] = H[:, :4] = 0
    assert np.argmin(obs_scores(W, H, block)) == 0
    none = np.zeros((12, 12))
    assert np.isfinite(obs_scores(W, none, block)).all()
    assert np.isfinite(reconstruct(W, none, np.array([[True, False, False]]), block)).all()


def test_share_to_remove():
    scores = np.arange(12.0).reshape(3, 4)
    assert keep_best(scores, 0.0).all()
    assert keep_best(scores, 0.5).tolist() == [[False] * 4, [False] * 2 + [True] * 2, [True] * 4]
    assert not keep_best(scores, 1.0).any()
    assert keep_best(np.zeros((2, 2)), 0.5).sum() == 2  # equal scores


def test_allocation_removes_what_costs_least_in_all():
    rng = np.random.default_rng(0)
    scores = {"a": rng.random((3, 4)), "b": rng.random((2, 2))}
    weights = {"a": 1.0, "b": 10.0}
    masks = allocate(scores, weights, 0.5)
    assert sum(mask.sum() for mask in masks.values()) == 8
    kept = [weights[name] * s for name in scores for s in scores[name][masks[name]]]
    gone = [weights[name] * s for name in scores for s in scores[name][~masks[name]]]
    assert min(kept) >= max(gone)
    assert masks["b"].mean() > masks["a"].mean()
    assert allocate({}, {}, 0.5) == {}
