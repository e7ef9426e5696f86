"""Covariances of patches are those of the products' inputs: a Conv is the product of its patches and its weight."""

import numpy as np
import pytest
from graphs import Builder
from onnxpress.optimizer.calibration import covariances, patches
from onnxpress.optimizer.calibration.covariances import Covariances

RNG = np.random.default_rng(8)
FORMS = [
    {"kernel": (3, 3), "pads": [1, 0, 2, 1]},
    {"kernel": (3, 2), "strides": [2, 1], "dilations": [1, 2]},
    {"kernel": (3, 3), "group": 2, "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"kernel": (2, 2), "group": 4, "strides": [3, 3], "auto_pad": "SAME_LOWER"},
    {"kernel": (1, 1), "auto_pad": "VALID"},
    {"kernel": (5,), "group": 4, "pads": [2, 2]},
]


def conv(kernel, group=1, **attributes):
    """A Conv behind a node, and its input's shape."""
    b = Builder()
    shape = [2, 4, 9, 8][: 2 + len(kernel)]
    x = b.op("Relu", b.input("x", shape), name="r")
    weight = RNG.standard_normal((8, 4 // group, *kernel)).astype(np.float32)
    y = b.op("Conv", x, b.constant("w", weight), name="c", group=group, kernel_shape=list(kernel), **attributes)
    b.output(y, ["n", 8, *["s"] * len(kernel)])
    return b.model(), shape, weight


@pytest.mark.parametrize("form", FORMS)
def test_patches_times_weight_are_the_conv(form):
    """All patches, in the order of the result: with their weight they must give what ONNX Runtime gives."""
    from onnxpress.optimizer.calibration.observe import Observer

    model, shape, weight = conv(**form)
    x = RNG.standard_normal(shape).astype(np.float32)
    node = next(node for node in model.graph if node.name == "c")
    inner, want = Observer(model, ["r_out", "c_out"]).run({"x": x})

    class InOrder:
        def choice(self, count, drawn, replace):
            assert not replace
            return np.arange(count)

    rows = patches._patches(node, inner, 10**6, InOrder())
    got = rows @ weight.reshape(len(rows), -1, rows.shape[-1]).transpose(0, 2, 1)  # [G, n, N / G]
    got = got.transpose(1, 0, 2).reshape(len(x), -1, 8)
    np.testing.assert_allclose(got, np.moveaxis(want, 1, -1).reshape(got.shape), rtol=1e-4, atol=1e-4)


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
    model, shape, _ = conv((3, 3))
    feeds = [{"x": RNG.standard_normal(shape).astype(np.float32)}]
    nodes = [node for node in model.graph if node.name == "c"]
    monkeypatch.setattr(covariances, "_MEMORY", 1)
    assert Covariances(model, nodes, feeds, centred=True).get("c").second.shape == (1, 36, 36)
    monkeypatch.setattr(covariances, "_MOST_INPUTS", 35)
    assert Covariances(model, nodes, feeds, centred=True).get("c") is None
    assert Covariances(model, nodes, feeds, centred=True).get("other") is None
