"""Moments over batches against their definition on all rows at once."""

from __future__ import annotations

import graphs
import numpy as np
import pytest
from onnxpress.optimizer.calibration import inner_products
from onnxpress.optimizer.calibration.inner_products import MomentSums
from onnxpress.optimizer.graph.constants import mark_constants

RNG = np.random.default_rng(9)


def node(op_type="MatMul", K=20, **attributes):
    b = graphs.Builder(18)
    x = b.input("x", [None, K])
    b.output(b.op(op_type, x, b.constant("W", RNG.standard_normal((K, 6)).astype(np.float32)), **attributes), [None, 6])
    model = b.model()
    mark_constants(model)
    return next(each for each in model.graph if each.op_type == op_type)


def parts(rows):
    apart = np.arange(len(rows)) % 8 == 7
    return rows[~apart], rows[apart]


@pytest.mark.parametrize("panel", [7, 512])
@pytest.mark.parametrize("trans", [0, 1])
def test_moments_of_both_paths(panel, trans, monkeypatch):
    monkeypatch.setattr(inner_products, "_PANEL", panel)
    sums = MomentSums(node("Gemm", transA=trans), cross=True)
    rounded = [RNG.standard_normal((n, 20)).astype(np.float32) for n in (5, 30, 1)]
    floats = [rounded[0], *(each + RNG.standard_normal(each.shape).astype(np.float32) for each in rounded[1:])]
    for here, there in zip(floats, rounded, strict=True):
        given = (here, there) if here is not there else (here, here)
        sums.add(*([each.T for each in given] if trans else given))
    found = sums.moments()
    assert found is not None
    for moments, x, y in zip(found, parts(np.concatenate(rounded)), parts(np.concatenate(floats)), strict=True):
        assert moments.count == len(x)
        drawn = np.ones((20, 20))
        if moments is found[0]:  # what is not on the diagonal, with the trust that so many rows have
            drawn = np.where(np.eye(20), 1, min(0.75, 2 * len(x) / (2 * len(x) + 20)))
        np.testing.assert_allclose(moments.second[0], drawn * (x.T @ x) / len(x), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(moments.cross[0], drawn * (x.T @ y) / len(x), rtol=1e-4, atol=1e-4)
    x, y = parts(np.concatenate(rounded))[1], parts(np.concatenate(floats))[1]
    w, v = RNG.standard_normal((2, 6, 20)).astype(np.float32)
    want = np.square(x @ v.T - y @ w.T).sum(axis=1).mean()
    assert found[1].cost(v, w) == pytest.approx(want, rel=1e-4)


def test_one_path_has_no_moments_across():
    sums = MomentSums(node(), cross=True)
    rows = RNG.standard_normal((3, 8, 20)).astype(np.float32)
    sums.add(rows, rows)
    learned, apart = sums.moments()
    assert learned.cross is None
    assert apart.cross is None
    w, v = RNG.standard_normal((2, 6, 20)).astype(np.float32)
    _, x = parts(rows.reshape(-1, 20))
    assert apart.cost(v, w) == pytest.approx(np.square(x @ (v - w).T).sum(axis=1).mean(), rel=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_rows_that_are_not_finite_or_have_squares_that_are_not(bad):
    sums = MomentSums(node(), cross=False)
    rows = RNG.standard_normal((32, 20)).astype(np.float32)
    rows[3, 4] = bad
    sums.add(rows, rows)
    assert sums.moments() is None


def test_too_few_rows():
    sums = MomentSums(node(), cross=False)
    sums.add(np.ones((7, 20), np.float32), np.ones((7, 20), np.float32))
    assert sums.moments() is None
