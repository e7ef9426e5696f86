"""Patches are what the outputs of a Conv read: it is the product of its patches and its weight."""

import numpy as np
import pytest
from graphs import Builder
from onnxpress.optimizer.calibration import patches

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
