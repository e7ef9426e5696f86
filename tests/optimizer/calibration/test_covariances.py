"""Moments of what products read, about zero and about the mean, and drawn towards their diagonal."""

import numpy as np
from graphs import Builder
from onnxpress.optimizer.calibration import covariances
from onnxpress.optimizer.calibration.covariances import Covariances

RNG = np.random.default_rng(8)


def conv():
    b = Builder()
    shape = [2, 4, 9, 8]
    x = b.op("Relu", b.input("x", shape), name="r")
    weight = b.constant("w", RNG.standard_normal((8, 4, 3, 3)).astype(np.float32))
    b.output(b.op("Conv", x, weight, name="c", kernel_shape=[3, 3]), ["n", 8, "s", "s"])
    model = b.model()
    return model, [node for node in model.graph if node.name == "c"], shape


def test_rows_of_matrices_and_their_covariance():
    b = Builder()
    x = b.input("x", ["b", "s", 6])
    y = b.op("MatMul", x, b.constant("w", RNG.standard_normal((6, 5)).astype(np.float32)), name="m")
    b.output(y, ["b", "s", 5])
    model = b.model()
    feeds = [{"x": RNG.standard_normal((4, 16, 6)).astype(np.float32) + 3} for _ in range(3)]
    nodes = list(model.graph)
    rows = np.concatenate([batch["x"].reshape(-1, 6) for batch in feeds])  # 64 a batch: all are drawn
    for centred in (False, True):
        second = rows.T @ rows / len(rows) - centred * np.outer(rows.mean(axis=0), rows.mean(axis=0))
        share = 2 * len(feeds) / (2 * len(feeds) + 6)
        want = share * second
        np.fill_diagonal(want, np.diag(second))
        moments = Covariances(model, nodes, feeds, centred=centred).get("m")
        np.testing.assert_allclose(moments.second[0], want, rtol=1e-4, atol=1e-4)
        if centred:
            np.testing.assert_allclose(moments.mean[0], rows.mean(axis=0), rtol=1e-5)


def test_groups_of_nodes_and_what_is_too_large(monkeypatch):
    model, nodes, shape = conv()
    feeds = [{"x": RNG.standard_normal(shape).astype(np.float32)}]
    monkeypatch.setattr(covariances, "_MEMORY", 1)
    assert Covariances(model, nodes, feeds, centred=True).get("c").second.shape == (1, 36, 36)
    monkeypatch.setattr(covariances, "_MOST_INPUTS", 35)
    assert Covariances(model, nodes, feeds, centred=True).get("c") is None
    assert Covariances(model, nodes, feeds, centred=True).get("other") is None


def test_of_what_is_not_finite_there_are_none():
    model, nodes, shape = conv()
    whole = [{"x": RNG.standard_normal(shape).astype(np.float32)} for _ in range(3)]
    assert Covariances(model, nodes, whole, centred=True).get("c") is not None
    whole[1] = {"x": np.full(shape, np.inf, np.float32)}
    assert Covariances(model, nodes, whole, centred=True).get("c") is None
