"""Surprise and divergence of logits, against the formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnxpress.optimizer.evaluation import likelihood
from onnxpress.optimizer.evaluation.likelihood import divergence, surprise

ROWS, WIDTH = 13, 7
TOKENS = np.arange(ROWS) * 5 % WIDTH


def logits(seed: int, scale: float = 3.0, dtype=np.float32) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((ROWS, WIDTH)) * scale).astype(dtype)


def probabilities(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("piece", [1, 3 * WIDTH, 1 << 22])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_sums_over_all_rows(monkeypatch, piece, dtype):
    monkeypatch.setattr(likelihood, "_PIECE", piece)
    x, y = logits(0, dtype=dtype), logits(1, dtype=dtype)
    p, q = probabilities(x), probabilities(y)
    rows = np.arange(ROWS)
    assert surprise(x, TOKENS) == pytest.approx(-np.log(p[rows, TOKENS]).sum(), rel=1e-12)
    found = divergence(x, y, TOKENS)
    assert found.nats == pytest.approx((p * np.log(p / q)).sum(), rel=1e-12)
    assert found.same == (p.argmax(1) == q.argmax(1)).sum() not in (0, ROWS)
    assert found.reference_surprise == pytest.approx(surprise(x, TOKENS), rel=1e-14)
    assert found.surprise == pytest.approx(surprise(y, TOKENS), rel=1e-14)


def test_equal_predictions_have_none():
    found = divergence(logits(0), logits(0) + np.float32(8), TOKENS)  # what is added to all says nothing
    assert found.nats == pytest.approx(0, abs=1e-6)
    assert divergence(logits(0), logits(0), TOKENS).nats == 0
    assert found.same == ROWS


def test_large_logits_neither_overflow_nor_vanish():
    x = np.array([[1e4, 0, -1e4]])
    assert surprise(x, np.array([0])) == 0
    assert surprise(x, np.array([2])) == 2e4
    assert divergence(x, -x, np.array([0])).nats == 2e4


def test_what_is_impossible():
    x, y = np.array([[0, -math.inf]]), np.array([[0.0, 0.0]])
    assert divergence(x, y, np.array([0])).nats == pytest.approx(math.log(2))
    assert divergence(y, x, np.array([0])).nats == math.inf
    assert surprise(x, np.array([1])) == math.inf


def test_nan_is_told():
    broken = logits(1)
    broken[4, 2] = math.nan
    assert math.isnan(surprise(broken, TOKENS))
    assert math.isnan(divergence(logits(0), broken, TOKENS).nats)
    assert math.isnan(divergence(broken, logits(0), TOKENS).reference_surprise)
