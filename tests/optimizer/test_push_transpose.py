"""Transposes that are pushed together and cancel, those that stay, and that no graph gets more of them."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress import models
from onnxpress.optimizer.passes import CleanUp, PushTranspose
from rewrites import op_types, real_feeds, rewritten

RNG = np.random.default_rng(13)
NHWC, NCHW = [0, 2, 3, 1], [0, 3, 1, 2]
X = {"x": RNG.normal(size=(2, 4, 6, 5)).astype(np.float32)}


def array(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def ints(b, name, *values):
    return b.constant(name, np.array(values, np.int64))


def conv(b, x, channels=4):
    name = f"W{len(b.graph)}"
    return b.op("Conv", x, b.constant(name, array(3, channels, 1, 1)))


def typed(value, shape):
    """With the shape that inference would give."""
    value.shape, value.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
    return value


MIDDLES = {
    "map": (7, lambda b, x: b.op("Sigmoid", b.op("Relu", x))),
    "clip": (11, lambda b, x: b.op("Clip", x, b.constant("low", np.float32(-1)), b.constant("high", np.float32(1)))),
    "bias": (7, lambda b, x: b.op("Add", b.constant("bias", array(4)), x)),
    "matrix": (7, lambda b, x: b.op("Mul", x, b.constant("factors", array(5, 4)))),
    "number": (7, lambda b, x: b.op("Div", x, b.constant("half", array(1, 1)))),
    "prelu": (9, lambda b, x: b.op("PRelu", x, b.constant("slope", array(6, 1, 4)))),
    "itself": (7, lambda b, x: b.op("Mul", x, b.op("Sigmoid", x))),
    "pads": (7, lambda b, x: b.op("Pad", x, pads=[0, 1, 2, 0, 0, 0, 3, 0])),
    "pad input": (13, lambda b, x: b.op("Pad", x, ints(b, "pads", 0, 1, 2, 0, 0, 0, 3, 0))),
    "slices": (9, lambda b, x: b.op("Slice", x, starts=[1, 0], ends=[4, 3], axes=[1, 2])),
    "slices of the first": (9, lambda b, x: b.op("Slice", x, starts=[1, 1], ends=[2, 4])),
    "slice inputs": (13, lambda b, x: b.op("Slice", x, ints(b, "s", 1), ints(b, "e", 4), ints(b, "a", -2))),
    "slice of the first": (13, lambda b, x: b.op("Slice", x, ints(b, "s", 0, 1), ints(b, "e", 2, 4))),
    "concat": (13, lambda b, x: b.op("Concat", x, b.op("Relu", x), b.constant("more", array(2, 6, 1, 4)), axis=2)),
    "mean": (13, lambda b, x: b.op("ReduceMean", x, axes=[1, -2], keepdims=1)),
    "mean input": (18, lambda b, x: b.op("ReduceMean", x, ints(b, "axes", 1), keepdims=1)),
    "softmax": (13, lambda b, x: b.op("Softmax", x, axis=-1)),
    "scales": (10, lambda b, x: b.op("Resize", x, b.constant("scales", np.array([1, 2, 3, 1], np.float32)))),
    "sizes": (
        13,
        lambda b, x: b.op(
            "Resize", x, b.constant("roi", array(0)), b.constant("none", array(0)), ints(b, "sizes", 2, 9, 5, 4),
            coordinate_transformation_mode="asymmetric", mode="linear",
        ),
    ),
    "split": (11, lambda b, x: b.op("Sub", *b.op("Split", x, outputs=2, axis=1))),
}  # fmt: skip


@pytest.mark.parametrize("middle", MIDDLES)
def test_pushed_through(middle):
    opset, build = MIDDLES[middle]
    b = graphs.Builder(opset)
    x = typed(b.op("Transpose", b.input("x", ["n", 4, 6, 5]), perm=NHWC), ["n", 6, 5, 4])
    b.output(conv(b, b.op("Transpose", build(b, x), perm=NCHW)), ["n", 3, None, None])
    model = b.model()
    CleanUp()(model)  # for the shapes
    assert "Transpose" not in rewritten(model, PushTranspose(), X, depth=16)
    assert PushTranspose()(model) is False


def test_tensors_whose_axes_vanish():
    b = graphs.Builder(11)
    x = typed(b.op("Transpose", b.input("x", ["n", 4, 6, 5]), perm=NHWC), ["n", 6, 5, 4])
    b.output(b.op("ReduceMean", b.op("Relu", x), axes=[1, 2], keepdims=0), ["n", 4])
    y = typed(b.op("ReduceMax", x, axes=[1, 2], keepdims=1), ["n", 1, 1, 4])
    b.output(b.op("Squeeze", y, axes=[1, 2]), ["n", 4])
    assert sorted(rewritten(b.model(), PushTranspose(), X, depth=16)) == ["ReduceMax", "ReduceMean", "Relu", "Squeeze"]


def test_vanishing_axes_that_change_the_order_are_left():
    b = graphs.Builder(11)
    x = typed(b.op("Transpose", b.input("x", ["n", 4, 6, 5]), perm=NHWC), ["n", 6, 5, 4])
    b.output(b.op("ReduceMean", x, axes=[1], keepdims=0), ["n", 5, 4])
    rewritten(b.model(), PushTranspose(), X, depth=16, changes=False)


@pytest.mark.parametrize("axis", [3, 1])
def test_softmax_of_old_opsets(axis):
    b = graphs.Builder(11)
    x = typed(b.op("Transpose", b.input("x", ["n", 4, 6, 5]), perm=[0, 2, 1, 3]), ["n", 6, 4, 5])
    b.output(b.op("Transpose", b.op("Softmax", x, axis=axis), perm=[0, 2, 1, 3]), ["n", 4, 6, 5])
    rewritten(b.model(), PushTranspose(), X, depth=16, changes=axis == 3)


def test_residuals_meet():
    """Two Transposes behind convolutions and one ahead of the next become none."""
    b = graphs.Builder(13)
    x = b.input("x", ["n", 4, 6, 5])
    a, c = (typed(b.op("Transpose", conv(b, x), perm=NHWC), ["n", 6, 5, 3]) for _ in range(2))
    y = b.op("Relu", b.op("Add", a, b.op("Mul", c, b.constant("s", array(3)))))
    b.output(conv(b, b.op("Transpose", y, perm=NCHW), 3), ["n", 3, 6, 5])
    b.output(b.op("Transpose", y, perm=NCHW), ["n", 3, 6, 5])
    assert "Transpose" not in rewritten(b.model(), PushTranspose(), X, depth=16)


def test_orders_are_composed():
    b = graphs.Builder(13)
    x = typed(b.op("Transpose", b.input("x", ["n", 4, 6, 5]), perm=NHWC), ["n", 6, 5, 4])
    b.output(b.op("Relu", b.op("Transpose", b.op("Relu", x), perm=NHWC)), ["n", 5, 4, 6])
    assert rewritten(b.model(), PushTranspose(), X, depth=1).count("Transpose") == 1


@pytest.mark.parametrize("also_an_output", [True, False])
def test_a_reader_that_cancels_is_not_the_way_back(also_an_output):
    """A swap of two axes is its own inverse: the Transpose behind the region is the one that its outputs need."""
    swap = [0, 2, 1]
    b = graphs.Builder(13)
    x = typed(b.op("Transpose", b.input("x", ["n", 6, 6]), perm=swap), ["n", 6, 6])
    y = typed(b.op("Relu", x), ["n", 6, 6])
    b.output(b.op("Sigmoid", b.op("Transpose", y, perm=swap)), ["n", 6, 6])
    b.output(
        y if also_an_output else b.op("ReduceSum", y, ints(b, "last", -1), keepdims=0),
        ["n", 6, 6][: 2 + also_an_output],
    )
    feeds = {"x": RNG.normal(size=(2, 6, 6)).astype(np.float32)}
    rewritten(b.model(), PushTranspose(), feeds, depth=8)


def test_a_reader_of_another_order_and_one_of_none():
    """The same value leaves a region to a Transpose, which takes over the way out, and to what needs the old order."""
    b = graphs.Builder(13)
    x = typed(b.op("Transpose", b.input("x", ["n", 4, 6, 5]), perm=NHWC), ["n", 6, 5, 4])
    y = typed(b.op("Relu", x), ["n", 6, 5, 4])
    z = b.op("Transpose", b.op("Relu", y), perm=NCHW)
    w = b.op("Transpose", b.op("Add", z, b.op("Transpose", y, perm=NCHW)), perm=[1, 0, 2, 3])
    b.output(b.op("Relu", b.op("Transpose", y, perm=NHWC)), ["n", 5, 4, 6])
    b.output(b.op("Reshape", y, ints(b, "flat", -1)), [None])
    b.output(b.op("Relu", w), [4, "n", 6, 5])
    model = b.model()
    assert op_types(model).count("Transpose") == 5
    assert rewritten(model, PushTranspose(), X, depth=2).count("Transpose") <= 3


@pytest.mark.parametrize("reader", ["none", "float", "output", "rank", "input"])
def test_what_would_gain_nothing_is_left(reader):
    b = graphs.Builder(13)
    x = b.input("x", ["n", 4, 6, 5])
    t = typed(b.op("Transpose", x, perm=NHWC), ["n", 6, 5, 4])
    y = b.op("Relu", t)
    if reader == "output":
        b.output(y, ["n", 6, 5, 4])
        y = b.op("Transpose", y, perm=NCHW)
        b.output(t, ["n", 6, 5, 4])
    if reader == "float":
        y = b.op("Reshape", y, ints(b, "flat", -1))
    if reader == "rank":
        y = b.op("Transpose", b.op("Add", y, b.constant("more", array(1, 1, 1, 1, 1))), perm=[0, 1, 4, 2, 3])
    if reader == "input":
        b.graph.inputs.append(bias := b.constant("bias", array(4)))
        y = b.op("Transpose", b.op("Add", y, bias), perm=NCHW)
    shapes = {"none": ["n", 6, 5, 4], "float": [None], "rank": [1, "n", 4, 6, 5]}
    b.output(b.op("Sigmoid", y), shapes.get(reader, ["n", 4, 6, 5]))
    rewritten(b.model(), PushTranspose(), X, depth=1, changes=False)


def in_nhwc(model):
    """Write a model as TensorFlow's exporters do: values with channels last, each product between Transposes."""
    products = ("Conv", "MaxPool", "AveragePool")
    for node in list(model.graph):
        result = node.outputs[0]
        if node.op_type in products:
            behind = ir.node("Transpose", [result], attributes={"perm": NHWC}, name=f"{node.name}_behind")
            behind.outputs[0].name = behind.name
            typed(behind.outputs[0], [result.shape[axis] for axis in NHWC])
            for reader, index in tuple(result.uses()):
                if reader is not behind:
                    reader.replace_input_with(index, behind.outputs[0])
            model.graph.insert_after(node, behind)
        elif node.op_type != "Transpose" and len(result.shape) == 4:
            result.shape = ir.Shape([result.shape[axis] for axis in NHWC])
    for node in list(model.graph):
        if node.op_type in products and node.inputs[0].producer().inputs[0] is not model.graph.inputs[0]:
            ahead = ir.node("Transpose", [node.inputs[0]], attributes={"perm": NCHW}, name=f"{node.name}_ahead")
            ahead.outputs[0].name = ahead.name
            typed(ahead.outputs[0], [node.inputs[0].shape[axis] for axis in NCHW])
            model.graph.insert_before(node, ahead)
            node.replace_input_with(0, ahead.outputs[0])


@pytest.mark.real
def test_residual_net_with_channels_last():
    model = ir.load(models.path("resnet-nsfw"))
    CleanUp()(model)
    wanted = op_types(model)
    assert PushTranspose()(model) is False
    in_nhwc(model)
    assert op_types(model).count("Transpose") == 2 * 55
    types = rewritten(model, PushTranspose(), real_feeds("resnet-nsfw"), depth=500)
    assert sorted(types) == sorted([*wanted, "Transpose"])  # one more: what is reshaped in the end


@pytest.mark.real
@pytest.mark.parametrize("name", ["ppocr-det", "ppocr-rec", "minilm", "silero-vad"])
def test_other_models_have_none_to_spare(name):
    model = ir.load(models.path(name))
    CleanUp()(model)
    types = op_types(model)
    assert rewritten(model, PushTranspose(), real_feeds(name), depth=500, changes=False) == types
