"""Activations that exporters spell out in parts: what is recognised, what is left, and that the numbers stay."""

from __future__ import annotations

import graphs
import numpy as np
import pytest
from onnxpress.optimizer.passes.recognise_activations import RecogniseActivations
from rewrites import number, op_types, rewritten

RNG = np.random.default_rng(11)
X = {"x": RNG.normal(0, 3, (2, 4, 6, 5)).astype(np.float32)}
SHAPE = ["n", 4, "h", "w"]


def hard_swish(b, x, form):
    """x clip(x + 3, 0, 6) / 6 in the forms that exporters write."""
    three, zero, six = number(b, "three", 3, (1,)), number(b, "zero", 0), number(b, "six", 6)
    moved = b.op("Add", three, x)
    if form == "attributes":
        gate = b.op("Clip", moved, min=0.0, max=6.0)
    elif form == "minmax":
        gate = b.op("Min", b.op("Max", moved, zero), six)
    elif form == "relu6":
        gate = b.op("Min", six, b.op("Relu", moved))
    else:
        gate = b.op("Clip", moved, zero, six)
    sixth = number(b, "sixth", 1 / 6)
    if form == "gate first":
        return b.op("Mul", b.op("Div", gate, six), x)
    if form == "x first":
        return b.op("Mul", b.op("Mul", x, sixth), gate)
    product = b.op("Mul", x, gate)
    return b.op("Mul", product, sixth) if form == "sixth" else b.op("Div", product, six)


FORMS = [("attributes", 7), ("attributes", 10), ("minmax", 8), ("relu6", 10)] + [
    (form, opset)
    for form in ("minmax", "relu6", "clip", "gate first", "x first", "sixth")
    for opset in (11, 13, 14, 20)
]


@pytest.mark.parametrize(("form", "opset"), FORMS)
def test_hard_swish(form, opset):
    b = graphs.Builder(opset)
    b.output(hard_swish(b, b.input("x", SHAPE), form), SHAPE)
    types = rewritten(b.model(), RecogniseActivations(), X, depth=8)
    assert types == (["HardSwish"] if opset >= 14 else ["HardSigmoid", "Mul"])


def test_a_hard_swish_whose_parts_others_read_is_left_whole():
    b = graphs.Builder(14)
    x = b.input("x", SHAPE)
    moved = b.op("Add", x, number(b, "three", 3))
    gate = b.op("Clip", moved, number(b, "zero", 0), number(b, "six", 6))
    b.output(b.op("Div", b.op("Mul", x, gate), number(b, "sixth", 6)), SHAPE)
    b.output(gate, SHAPE)
    rewritten(b.model(), RecogniseActivations(), X, depth=8, changes=False)


def test_the_sum_in_a_hard_swish_stays_for_others():
    b = graphs.Builder(14)
    x = b.input("x", SHAPE)
    moved = b.op("Add", x, number(b, "three", 3))
    gate = b.op("Clip", moved, number(b, "zero", 0), number(b, "six", 6))
    b.output(b.op("Div", b.op("Mul", x, gate), number(b, "sixth", 6)), SHAPE)
    b.output(moved, SHAPE)
    assert sorted(rewritten(b.model(), RecogniseActivations(), X, depth=8)) == ["Add", "HardSwish"]


@pytest.mark.parametrize("scale", [1 / 6, 0.2])
def test_hard_sigmoid(scale):
    b = graphs.Builder(13)
    x = b.op("Add", b.op("Mul", b.input("x", SHAPE), number(b, "a", scale)), number(b, "b", 0.5))
    b.output(b.op("Clip", x, number(b, "zero", 0), number(b, "one", 1)), SHAPE)
    model = b.model()
    assert rewritten(model, RecogniseActivations(), X, depth=8) == ["HardSigmoid"]
    assert model.graph[-1].attributes["alpha"].as_float() == pytest.approx(scale)
    assert not RecogniseActivations()(model)


def test_a_clip_alone_is_no_hard_sigmoid():
    b = graphs.Builder(13)
    y = b.op("Clip", b.input("x", SHAPE), number(b, "zero", 0), number(b, "six", 6))
    b.output(b.op("Div", y, number(b, "sixth", 6)), SHAPE)
    assert rewritten(b.model(), RecogniseActivations(), X, depth=1, changes=False) == ["Clip", "Div"]


def test_clamps_become_one():
    b = graphs.Builder(13)
    y = b.op("Relu", b.op("Max", b.op("Relu", b.input("x", SHAPE)), number(b, "low", -1, (1, 1))))
    b.output(b.op("Min", number(b, "high", 2), y), SHAPE)
    assert rewritten(b.model(), RecogniseActivations(), X, depth=1) == ["Clip"]


@pytest.mark.parametrize(("bound", "kept"), [(np.zeros((1, 1, 1, 1, 1)), "more axes"), (np.zeros(4), "channels")])
def test_a_max_that_is_no_relu_is_left(bound, kept):
    b = graphs.Builder(13)
    x = b.input("x", ["n", 4, 6, 4])
    y = b.op("Max", x, b.constant("bound", bound.astype(np.float32)))
    b.output(y, ["n", 4, 6, 4] if kept == "channels" else [1, "n", 4, 6, 4])
    feeds = {"x": RNG.normal(size=(2, 4, 6, 4)).astype(np.float32)}
    assert rewritten(b.model(), RecogniseActivations(), feeds, depth=1, changes=False) == ["Max"]


def test_max_with_zero_is_relu():
    b = graphs.Builder(8)
    b.output(b.op("Max", number(b, "zero", 0, (1,)), b.input("x", SHAPE)), SHAPE)
    assert rewritten(b.model(), RecogniseActivations(), X, depth=1) == ["Relu"]


@pytest.mark.parametrize("form", ["max", "relus", "prelu"])
def test_leaky_relu(form):
    b = graphs.Builder(13)
    x, slope = b.input("x", SHAPE), number(b, "slope", 0.125, (4, 1, 1) if form == "prelu" else (1,))
    if form == "max":
        y = b.op("Max", x, b.op("Mul", slope, x))
    elif form == "prelu":
        y = b.op("PRelu", x, slope)
    else:
        y = b.op("Sub", b.op("Relu", x), b.op("Mul", b.op("Relu", b.op("Neg", x)), slope))
    b.output(y, SHAPE)
    assert rewritten(b.model(), RecogniseActivations(), X, depth=1) == ["LeakyRelu"]


@pytest.mark.parametrize(
    "slope", [np.float32([[[1]], [[-0.5]], [[0.7]], [[1.2]]]), np.full((4, 1, 1), 0.5, np.float32)]
)
def test_only_a_slope_of_one_number_is_leaky(slope):
    b = graphs.Builder(13)
    y = b.op("PRelu", b.input("x", SHAPE), b.constant("slope", slope))
    b.output(y, SHAPE)
    same = bool((slope == slope[0]).all())
    assert rewritten(b.model(), RecogniseActivations(), X, depth=1, changes=same) == ["LeakyRelu" if same else "PRelu"]


@pytest.mark.parametrize("form", ["Div", "Reciprocal"])
def test_sigmoid(form):
    b = graphs.Builder(13)
    one = number(b, "one", 1)
    total = b.op("Add", b.op("Exp", b.op("Neg", b.input("x", SHAPE))), one)
    b.output(b.op("Div", one, total) if form == "Div" else b.op("Reciprocal", total), SHAPE)
    assert rewritten(b.model(), RecogniseActivations(), X, depth=8) == ["Sigmoid"]


@pytest.mark.parametrize("form", range(4))
@pytest.mark.parametrize("opset", [13, 20])
def test_gelu(form, opset):
    b = graphs.Builder(opset)
    x, half = b.input("x", SHAPE), number(b, "half", 0.5)
    root = b.constant("root", np.float32(2**0.5 if form % 2 else 0.5**0.5))
    inner = b.op("Div" if form % 2 else "Mul", x, root)
    gate = b.op("Add", b.op("Erf", inner), number(b, "one", 1))
    if form == 0:
        y = b.op("Mul", b.op("Mul", x, gate), half)
    elif form == 1:
        y = b.op("Mul", b.op("Mul", x, half), gate)
    elif form == 2:
        y = b.op("Mul", x, b.op("Mul", half, gate))
    else:
        y = b.op("Div", b.op("Mul", gate, x), number(b, "two", 2))
    b.output(y, SHAPE)
    model = b.model()
    assert rewritten(model, RecogniseActivations(), X, depth=8) == ["Gelu"]
    assert model.graph[-1].domain == ("" if opset == 20 else "com.microsoft")


def gelu_by_tanh(b, x, form, factor=0.044715):
    """In the forms of torch, of transformers' gelu_new, and of what divides the work otherwise."""
    half, one, root = number(b, "half", 0.5), number(b, "one", 1), number(b, "root", (2 / np.pi) ** 0.5)
    small = number(b, "small", factor)
    if form == 0:
        cube = b.op("Pow", x, number(b, "three", 3))
    elif form == 1:
        cube = b.op("Mul", b.op("Mul", x, x), x)
    else:
        cube = b.op("Mul", x, b.op("Pow", x, number(b, "two", 2)))
    inner = b.op("Add", x, b.op("Mul", small, cube)) if form else b.op("Add", b.op("Mul", cube, small), x)
    gate = b.op("Add", b.op("Tanh", b.op("Mul", root, inner)), one)
    return b.op("Mul", b.op("Mul", half, x), gate) if form else b.op("Mul", b.op("Mul", x, gate), half)


@pytest.mark.parametrize("form", range(3))
@pytest.mark.parametrize("opset", [13, 20])
def test_gelu_by_tanh(form, opset):
    b = graphs.Builder(opset)
    b.output(gelu_by_tanh(b, b.input("x", SHAPE), form), SHAPE)
    model = b.model()
    assert rewritten(model, RecogniseActivations(), X, depth=12) == ["Gelu" if opset == 20 else "FastGelu"]
    node = model.graph[-1]
    assert node.domain == ("" if opset == 20 else "com.microsoft")
    assert node.attributes.get_string("approximate", "") == ("tanh" if opset == 20 else "")


def test_a_cube_of_another_factor_is_no_gelu():
    b = graphs.Builder(13)
    b.output(gelu_by_tanh(b, b.input("x", SHAPE), 1, factor=0.05), SHAPE)
    rewritten(b.model(), RecogniseActivations(), X, depth=12, changes=False)


def test_a_gate_of_another_factor_is_no_gelu():
    b = graphs.Builder(13)
    x = b.input("x", SHAPE)
    gate = b.op("Add", b.op("Erf", b.op("Mul", x, number(b, "root", 0.5**0.5))), number(b, "one", 1))
    b.output(b.op("Mul", x, gate), SHAPE)
    rewritten(b.model(), RecogniseActivations(), X, depth=8, changes=False)


def test_constants_that_a_caller_may_override_are_none():
    b = graphs.Builder(13)
    zero = number(b, "zero", 0)
    b.graph.inputs.append(zero)
    b.output(b.op("Max", b.input("x", SHAPE), zero), SHAPE)
    model = b.model()
    assert not RecogniseActivations()(model)
    assert op_types(model) == ["Max"]
