"""Equalized networks compute the same, with channels of one range; what cannot be equalized is left, with a reason."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from graphs import Builder
from onnxpress.optimizer.passes.equalize_channels import EqualizeChannels
from onnxpress.optimizer.runtime.session import open_session, session_options

LEVELS = (ort.GraphOptimizationLevel.ORT_ENABLE_ALL, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
RNG = np.random.default_rng(3)


@dataclasses.dataclass
class Ranges:
    channel_absmax: np.ndarray | None


def uneven(*shape):
    """A weight whose output channels differ by a factor of up to 100."""
    sizes = 10.0 ** RNG.uniform(-1, 1, (shape[0], *[1] * (len(shape) - 1)))
    return (RNG.standard_normal(shape) * sizes / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def run(model, feeds, level, names=()):
    proto = ir.to_proto(model)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    options = session_options()
    options.graph_optimization_level = level
    return open_session(proto.SerializeToString(), options).run(None, feeds)


def mobile(between="Relu"):
    """1x1, depthwise, 1x1 in two groups, pool."""
    b = Builder()
    y = b.op("Conv", b.input("x", [2, 3, 8, 8]), b.constant("w1", uneven(12, 3, 1, 1)), b.constant("b1", uneven(12)),
             name="c1")  # fmt: skip
    y = activation(b, between, y, "a1")
    y = b.op("Conv", y, b.constant("w2", uneven(12, 1, 3, 3)), b.constant("b2", uneven(12)), name="dw", group=12)
    y = activation(b, between, y, "a2")
    y = b.op("MaxPool", y, name="pool", kernel_shape=[2, 2])
    y = b.op("Conv", y, b.constant("w3", uneven(6, 6, 1, 1)), name="c3", group=2)
    b.output(y, [2, 6, 5, 5])
    return b.model()


def activation(b, kind, y, name):
    if kind == "none":
        return y
    if kind == "Clip":
        return b.op("Clip", y, b.constant(f"{name}_low", np.float32(0)), name=name)
    return b.op(kind, y, name=name, **({"alpha": 0.1} if kind == "LeakyRelu" else {}))


FEEDS = {"x": RNG.standard_normal((2, 3, 8, 8)).astype(np.float32)}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("between", ["Relu", "LeakyRelu", "Clip", "none"])
@pytest.mark.parametrize("measured", [False, True])
def test_the_network_computes_the_same(between, level, measured):
    model = mobile(between)
    (want,) = run(model, FEEDS, level)
    names = [f"{'c1' if between == 'none' else 'a1'}_out", "pool_out"]
    found = dict(zip(names, run(model, FEEDS, level, names)[1:], strict=True))
    statistics = {name: Ranges(np.abs(x).max(axis=(0, 2, 3))) for name, x in found.items()} if measured else {}
    equalize = EqualizeChannels(statistics)
    assert equalize(model)
    assert set(equalize.equalized) == set(names)
    assert equalize.left == {"c1": "the tensor is no result of a node"}
    got, *inner = run(model, FEEDS, level, names)
    # Products of a few dozen numbers, each off by a few roundings of float32.
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    for name, x in zip(names, inner, strict=True):
        scale = equalize.equalized[name].reshape(1, -1, 1, 1)
        np.testing.assert_allclose(x, found[name] / scale, rtol=1e-3, atol=1e-5 * np.abs(x).max())


def test_a_depthwise_reader_lets_all_channels_have_one_range():
    model = mobile()
    _, before = run(model, FEEDS, LEVELS[1], ["a1_out"])
    assert EqualizeChannels({"a1_out": Ranges(np.abs(before).max(axis=(0, 2, 3)))})(model)
    _, after = run(model, FEEDS, LEVELS[1], ["a1_out"])
    ranges = np.abs(after).max(axis=(0, 2, 3))
    ranges = ranges[ranges > 0]
    np.testing.assert_allclose(ranges, ranges[0], rtol=1e-3)


def test_weights_alone_end_with_one_range_for_both():
    """r1 = r2 = sqrt(r1 r2) between two Gemms."""
    b = Builder()
    y = b.op("Gemm", b.input("x", ["m", 5]), b.constant("w1", uneven(7, 5)), b.constant("b1", uneven(7)), name="g1",
             transB=1)  # fmt: skip
    y = b.op("Gemm", b.op("Relu", y, name="r"), b.constant("w2", uneven(7, 4)), name="g2", alpha=0.5)
    b.output(y, ["m", 4])
    model = b.model()
    x = RNG.standard_normal((3, 5)).astype(np.float32)
    (want,) = run(model, {"x": x}, LEVELS[0])
    assert EqualizeChannels()(model)
    w1, w2 = (model.graph.initializers[name].const_value.numpy() for name in ("w1", "w2"))
    ratio = np.abs(w1).max(axis=1) / np.abs(w2).max(axis=1)
    np.testing.assert_allclose(ratio, ratio[0], rtol=0.05)
    np.testing.assert_allclose(run(model, {"x": x}, LEVELS[0])[0], want, rtol=1e-4, atol=1e-4)


def test_rounding_costs_less():
    """Activations in 8 bits with one scale: the channels of a small range gain."""
    model = mobile()
    want, before = run(model, FEEDS, LEVELS[1], ["a1_out"])
    equalize = EqualizeChannels({"a1_out": Ranges(np.abs(before).max(axis=(0, 2, 3)))})
    equalize(model)
    _, after = run(model, FEEDS, LEVELS[1], ["a1_out"])

    def relative_error(x):
        wrong = np.rint(x / (x.max() / 255)) * (x.max() / 255) - x
        signal = np.square(x).sum(axis=(0, 2, 3))
        return np.mean(np.square(wrong).sum(axis=(0, 2, 3))[signal > 0] / signal[signal > 0])

    assert relative_error(after) < 0.1 * relative_error(before)
    assert want.shape == (2, 6, 5, 5)


def test_what_is_left_and_why():
    b = Builder()
    x = b.input("x", [1, 4, 6, 6])
    high = b.constant("high", np.float32(6))
    low = b.constant("low", np.float32(0))
    y = b.op("Clip", b.op("Conv", x, b.constant("w1", uneven(4, 4, 1, 1)), name="c1"), low, high, name="clip")
    y = b.op("Conv", y, b.constant("w2", uneven(4, 4, 1, 1)), name="after_clip")
    z = b.op("Conv", y, b.constant("w3", uneven(4, 4, 1, 1)), name="shared")
    z = b.op("Add", y, z, name="sum")
    z = b.op("Conv", z, b.constant("w4", uneven(4, 4, 1, 1)), name="after_sum")
    z = b.op("Conv", b.op("Sigmoid", z, name="s"), b.constant("w5", uneven(4, 4, 1, 1)), name="after_sigmoid")
    b.output(z, [1, 4, 6, 6])
    z = b.op("Conv", z, b.constant("w6", uneven(4, 4, 1, 1)), name="after_output")
    b.output(z, [1, 4, 6, 6])
    model = b.model()
    equalize = EqualizeChannels()
    assert not equalize(model)
    assert equalize.left == {
        "c1": "the tensor is no result of a node",
        "after_clip": "a Clip to other bounds than 0 cannot take a scale",
        "shared": "others read the tensor too",
        "after_sum": "Add of two tensors cannot take a scale",
        "after_sigmoid": "Sigmoid cannot take a scale",
        "after_output": "the tensor is an output of the graph",
    }


def test_dead_channels_and_shared_weights():
    """A channel of zeros keeps its scale; a weight that two nodes read changes for one of them."""
    b = Builder()
    w = uneven(4, 4, 1, 1)
    w[1] = 0
    shared = b.constant("w", w)
    x = b.input("x", [1, 4, 6, 6])
    y = b.op("Conv", b.op("Relu", b.op("Conv", x, shared, name="c1"), name="r"), shared, name="c2")
    b.output(y, [1, 4, 6, 6])
    model = b.model()
    feeds = {"x": RNG.standard_normal((1, 4, 6, 6)).astype(np.float32)}
    (want,) = run(model, feeds, LEVELS[0])
    equalize = EqualizeChannels()
    assert equalize(model)
    assert equalize.equalized["r_out"][1] == 1
    np.testing.assert_allclose(run(model, feeds, LEVELS[0])[0], want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    assert len(model.graph.initializers) == 2
