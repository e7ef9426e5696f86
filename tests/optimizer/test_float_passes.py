"""What the float passes ahead of INT8 rewrite, what they leave and why, and that the numbers stay."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress import models
from onnxpress.optimizer.passes import CleanUp, FoldAffine, RecogniseActivations
from rewrites import op_types, real_feeds, rewritten

RNG = np.random.default_rng(11)
X = {"x": RNG.normal(0, 3, (2, 4, 6, 5)).astype(np.float32)}
SHAPE = ["n", 4, "h", "w"]


def array(*shape, low=0.5, high=1.5):
    return (RNG.uniform(low, high, shape) * RNG.choice([-1, 1], shape)).astype(np.float32)


def number(b, name, value, shape=()):
    return b.constant(name, np.full(shape, value, np.float32))


# Activations


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
    assert RecogniseActivations()(model) is False


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


@pytest.mark.parametrize("slope", [array(4, 1, 1), np.full((4, 1, 1), 0.5, np.float32)])
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
    assert RecogniseActivations()(model) is False
    assert op_types(model) == ["Max"]


# Affine maps


def affine(b, x, shape=(1, 4, 1, 1), forms=("Mul", "Add")):
    for form in forms:
        index = len(b.graph.initializers)
        if form == "BatchNormalization":
            parts = [
                b.constant(f"part{index}{i}", np.abs(array(shape[1])) if i == 3 else array(shape[1])) for i in range(4)
            ]
            x = b.op(form, x, *parts, epsilon=0.01)
        else:
            flipped = form.startswith("-")
            operands = [x, b.constant(f"constant{index}", array(*shape))]
            x = b.op(form.strip("-"), *operands[:: -1 if flipped else 1])
    return x


CHAINS = [
    ("Mul", "Add"), ("Div",), ("Sub",), ("-Sub", "-Mul"), ("BatchNormalization",), ("Add", "Mul", "Mul", "Sub"),
    ("-Add", "BatchNormalization", "Div"),
]  # fmt: skip


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("forms", CHAINS)
def test_behind_and_ahead_of_a_conv(forms, group):
    for opset, bias in ((7, True), (13, False)):
        for ahead in (False, True):
            b = graphs.Builder(opset)
            x = b.input("x", SHAPE)
            x = affine(b, x, forms=forms) if ahead else x
            parameters = [b.constant("W", array(8, 4 // group, 3, 2))]
            parameters += [b.constant("b", array(8))] * bias
            y = b.op("Conv", x, *parameters, group=group, kernel_shape=[3, 2])
            y = y if ahead else affine(b, y, (1, 8, 1, 1), forms)
            b.output(y, ["n", 8, "h2", "w2"])
            assert rewritten(b.model(), FoldAffine(), X, depth=64) == ["Conv"]


@pytest.mark.parametrize("group", [1, 2])
def test_conv_transpose(group):
    b = graphs.Builder(13)
    x = affine(b, b.input("x", SHAPE), forms=("Mul",))
    y = b.op("ConvTranspose", x, b.constant("W", array(4, 6 // group, 3, 3)), group=group, strides=[2, 2], pads=[1] * 4)
    b.output(affine(b, y, (6, 1, 1)), ["n", 6, "h2", "w2"])
    assert rewritten(b.model(), FoldAffine(), X, depth=64) == ["ConvTranspose"]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (), (6,), (1, 6)])
def test_gemm(transposed, bias):
    b = graphs.Builder(13)
    x = affine(b, b.input("x", ["n", 5]), (5,))
    parameters = [b.constant("W", array(6, 5) if transposed else array(5, 6))]
    parameters += [] if bias is None else [b.constant("c", array(*bias))]
    y = b.op("Gemm", x, *parameters, transB=transposed, alpha=0.5, beta=-2.0)
    b.output(affine(b, y, (1, 6)), ["n", 6])
    feeds = {"x": RNG.normal(size=(3, 5)).astype(np.float32)}
    assert rewritten(b.model(), FoldAffine(), feeds, depth=64) == ["Gemm"]


def test_matmul_keeps_one_sum():
    b = graphs.Builder(13)
    x = affine(b, b.input("x", ["n", "m", 5]), (5,), ("Mul",))
    y = b.op("MatMul", x, b.constant("W", array(5, 6)))
    b.output(affine(b, y, (6,), ("Add", "Mul", "Sub")), ["n", "m", 6])
    feeds = {"x": RNG.normal(size=(2, 3, 5)).astype(np.float32)}
    model = b.model()
    assert rewritten(model, FoldAffine(), feeds, depth=64) == ["MatMul", "Add"]
    assert FoldAffine()(model) is False


def padded(forms=("Mul", "Add"), **attributes):
    b = graphs.Builder(13)
    x = affine(b, b.op("Relu", b.input("x", SHAPE)), forms=forms)
    y = b.op("Conv", x, b.constant("W", array(4, 1, 3, 3)), group=4, kernel_shape=[3, 3], **attributes)
    b.output(y, ["n", 4, "h2", "w2"])
    return b.model()


@pytest.mark.parametrize("attributes", [{"pads": [0, 0, 1, 0]}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}])
def test_ahead_of_padding_only_the_product_goes(attributes):
    folding = FoldAffine()
    types = rewritten(padded(**attributes), folding, X, depth=64)
    assert types == ["Relu", "Add", "Conv"]
    assert "pads with zeros" in next(iter(folding.left.values()))


def test_a_sum_ahead_of_padding_is_left_with_the_reason():
    folding = FoldAffine()
    rewritten(padded(("Add",), pads=[1] * 4), folding, X, depth=64, changes=False)
    assert "pads with zeros" in folding.left["Add_1"]
    assert rewritten(padded(auto_pad="VALID"), FoldAffine(), X, depth=64) == ["Relu", "Conv"]


def test_what_others_read_is_left_with_the_reason():
    b = graphs.Builder(13)
    x = b.input("x", SHAPE)
    ahead = b.op("Mul", x, number(b, "two", 2), name="ahead")
    y = b.op("Conv", ahead, b.constant("W", array(4, 4, 1, 1)))
    behind = b.op("Mul", y, number(b, "three", 3), name="behind")
    for value in (b.op("Relu", ahead), behind, y):
        b.output(value, SHAPE)
    folding = FoldAffine()
    rewritten(b.model(), folding, X, depth=16, changes=False)
    assert folding.left == {"ahead": "others than products read it"}


def test_all_readers_take_it():
    b = graphs.Builder(13)
    x = affine(b, b.input("x", SHAPE))
    for index in range(2):
        b.output(b.op("Conv", x, b.constant(f"W{index}", array(3, 4, 1, 1))), ["n", 3, "h", "w"])
    assert rewritten(b.model(), FoldAffine(), X, depth=16) == ["Conv", "Conv"]


def refused(weight="plain", shape=(4, 1, 1), scale=2.0):
    b = graphs.Builder(13)
    W = b.constant("W", array(4, 4, 1, 1) * (1e38 if weight == "huge" else 1))
    if weight == "input":
        b.graph.inputs.append(W)
    x = b.input("x", SHAPE)
    y = b.op("Conv", x, W)
    if weight == "shared":
        b.output(b.op("Conv", x, W), SHAPE)
    b.output(b.op("Mul", y, number(b, "s", scale, shape), name="scale"), SHAPE)
    return b.model()


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ({"weight": "input"}, "no constant"),
        ({"weight": "shared"}, "read by others"),
        ({"weight": "huge", "scale": 1e3}, "not be finite"),
        ({"shape": (4, 6, 5)}, "not one number a channel"),
    ],
)
def test_refusals(case, reason):
    folding, model = FoldAffine(), refused(**case)
    assert folding(model) is False
    assert reason in folding.left["scale"]


def test_a_constant_that_adds_an_axis_is_left():
    b = graphs.Builder(13)
    y = b.op("Conv", b.input("x", SHAPE), b.constant("W", array(4, 4, 1, 1)))
    b.output(b.op("Mul", y, number(b, "s", 1, (1, 1, 1, 1, 1))), [1, *SHAPE])
    rewritten(b.model(), FoldAffine(), X, depth=16, changes=False)


def test_chains_are_shortened():
    b = graphs.Builder(13)
    x = b.op("Relu", b.input("x", SHAPE))
    y = affine(b, x, forms=("Mul", "Add", "Mul", "Sub"))
    z = b.op("Mul", b.op("Sigmoid", y), number(b, "one", 1, (1,)))
    b.output(b.op("Relu", z), SHAPE)
    assert rewritten(b.model(), FoldAffine(), X, depth=16) == ["Relu", "Mul", "Add", "Sigmoid", "Relu"]


def test_a_normalization_between_activations_becomes_mul_and_add():
    b = graphs.Builder(9)
    x = b.op("Relu", b.input("x", SHAPE))
    b.output(b.op("Relu", affine(b, x, forms=("BatchNormalization",))), SHAPE)
    assert rewritten(b.model(), FoldAffine(), X, depth=16) == ["Relu", "Mul", "Add", "Relu"]


def test_constants_that_together_are_larger_than_each_stay_apart():
    b = graphs.Builder(13)
    x = b.op("Relu", b.input("x", SHAPE))
    shapes = ((6, 1), (5,), (6, 1))
    for index, shape in enumerate(shapes):
        x = b.op(("Mul", "Add", "Mul")[index], x, b.constant(f"c{index}", array(*shape)))
    b.output(x, SHAPE)
    rewritten(b.model(), FoldAffine(), X, depth=16, changes=False)


def test_damaged_constants_are_left():
    b = graphs.Builder(13)
    x = b.input("x", SHAPE)
    parts = [b.constant(f"p{size}{i}", np.abs(array(size))) for i, size in enumerate((4, 4, 3, 4))]
    y = b.op("BatchNormalization", b.op("Conv", x, b.constant("W", array(4, 4, 1, 1))), *parts)
    for index, shape in enumerate(((5,), (7,), (0,))):
        y = b.op("Mul", y, b.constant(f"c{index}", array(*shape)))
    y = b.op("Conv", y, b.constant("V", array()), b.constant("u", array()))
    b.output(b.op("Add", y, b.constant("nan", np.float32(np.nan))), SHAPE)
    model = b.model()
    assert FoldAffine()(model) is False
    assert RecogniseActivations()(model) is False


def test_a_normalization_in_training_is_left():
    b = graphs.Builder(15)
    parts = [b.constant(f"p{i}", np.abs(array(4))) for i in range(4)]
    b.output(b.op("BatchNormalization", b.input("x", SHAPE), *parts, outputs=3, training_mode=1)[0], SHAPE)
    assert FoldAffine()(b.model()) is False


def test_the_end_of_a_layer_normalization_is_left():
    b = graphs.Builder(13)
    x = b.input("x", ["n", 5])
    centred = b.op("Sub", x, b.op("ReduceMean", x, axes=[-1]))
    variance = b.op("ReduceMean", b.op("Mul", centred, centred), axes=[-1])
    y = affine(b, b.op("Div", centred, b.op("Sqrt", variance)), (5,))
    b.output(b.op("Gemm", y, b.constant("W", array(5, 6))), ["n", 6])
    folding, model = FoldAffine(), b.model()
    assert folding(model) is False
    assert "end of a normalization" in next(iter(folding.left.values()))


def test_other_types_are_left():
    b = graphs.Builder(13)
    x = b.input("x", SHAPE, ir.DataType.DOUBLE)
    y = b.op("Mul", b.op("Conv", x, b.constant("W", np.ones((4, 4, 1, 1)))), b.constant("s", np.full((), 2.0)))
    b.output(y, SHAPE, ir.DataType.DOUBLE)
    model = b.model()
    assert FoldAffine()(model) is False
    assert RecogniseActivations()(model) is False


@pytest.mark.real
@pytest.mark.parametrize("name", ["ppocr-det", "ppocr-rec", "resnet-nsfw", "minilm", "silero-vad"])
def test_real_models(name):
    model = ir.load(models.path(name))
    CleanUp()(model)
    is_paddle = name.startswith("ppocr")
    # Some 40 layers behind each other, each off by the roots of its sums of up to 4,000 numbers.
    rewritten(model, RecogniseActivations(), real_feeds(name), depth=500, changes=is_paddle or name == "minilm")
    types = rewritten(model, FoldAffine(), real_feeds(name), depth=2000, changes=is_paddle)
    if is_paddle:
        assert types.count("HardSigmoid") >= 30
        assert "BatchNormalization" not in types
        assert "Clip" not in types
