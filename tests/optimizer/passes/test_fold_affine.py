"""Affine maps that go into weights: what is folded, what is left and why, and that the numbers stay."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress import models
from onnxpress.optimizer.passes.clean_up import CleanUp
from onnxpress.optimizer.passes.fold_affine import FoldAffine
from onnxpress.optimizer.passes.recognise_activations import RecogniseActivations
from rewrites import number, real_feeds, rewritten

RNG = np.random.default_rng(11)
X = {"x": RNG.normal(0, 3, (2, 4, 6, 5)).astype(np.float32)}
SHAPE = ["n", 4, "h", "w"]


def array(*shape, low=0.5, high=1.5):
    return (RNG.uniform(low, high, shape) * RNG.choice([-1, 1], shape)).astype(np.float32)


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
    assert not FoldAffine()(model)


def test_only_behind_products():
    """The rest of what could go stays: ahead of a product, and a chain of its own."""
    b = graphs.Builder(13)
    x = affine(b, b.op("Relu", affine(b, b.input("x", ["n", "m", 5]), (5,), ("Mul", "Mul"))), (5,), ("Mul",))
    y = b.op("MatMul", x, b.constant("W", array(5, 6)))
    b.output(affine(b, y, (6,), ("Add", "Mul")), ["n", "m", 6])
    feeds = {"x": RNG.normal(size=(2, 3, 5)).astype(np.float32)}
    only = FoldAffine(all_chains=False)
    assert rewritten(b.model(), only, feeds, depth=64) == ["Mul", "Mul", "Relu", "Mul", "MatMul", "Add"]
    assert not only.left


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
    assert not folding(model)
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
    assert not FoldAffine()(model)
    assert not RecogniseActivations()(model)


def test_a_normalization_in_training_is_left():
    b = graphs.Builder(15)
    parts = [b.constant(f"p{i}", np.abs(array(4))) for i in range(4)]
    b.output(b.op("BatchNormalization", b.input("x", SHAPE), *parts, outputs=3, training_mode=1)[0], SHAPE)
    assert not FoldAffine()(b.model())


def test_the_end_of_a_layer_normalization_is_left():
    b = graphs.Builder(13)
    x = b.input("x", ["n", 5])
    centred = b.op("Sub", x, b.op("ReduceMean", x, axes=[-1]))
    variance = b.op("ReduceMean", b.op("Mul", centred, centred), axes=[-1])
    y = affine(b, b.op("Div", centred, b.op("Sqrt", variance)), (5,))
    b.output(b.op("Gemm", y, b.constant("W", array(5, 6))), ["n", 6])
    folding, model = FoldAffine(), b.model()
    assert not folding(model)
    assert "end of a normalization" in next(iter(folding.left.values()))


def test_other_types_are_left():
    b = graphs.Builder(13)
    x = b.input("x", SHAPE, ir.DataType.DOUBLE)
    y = b.op("Mul", b.op("Conv", x, b.constant("W", np.ones((4, 4, 1, 1)))), b.constant("s", np.full((), 2.0)))
    b.output(y, SHAPE, ir.DataType.DOUBLE)
    model = b.model()
    assert not FoldAffine()(model)
    assert not RecogniseActivations()(model)


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


BROADCASTING = {
    "MatMul, columns": ([4, 1], (6,), "MatMul", (6, 5)),
    "MatMul, rank": ([4, 6], (1, 1, 6), "MatMul", (6, 5)),
    "MatMul, of a vector": ([6], (1, 6), "MatMul", (6, 5)),
    "MatMul, columns that have a name": ([4, "k"], (6,), "MatMul", (6, 5)),
    "Gemm, columns": ([4, 1], (1, 6), "Gemm", (6, 5)),
    "Gemm, rank": ([6], (1, 6), "Gemm", (6, 5)),
    "Conv, grey to colours": ([1, 1, 5, 5], (1, 3, 1, 1), "Conv", (4, 3, 3, 3)),
    "Conv, rank": ([3, 5, 5], (1, 3, 1, 1), "Conv", (4, 3, 3, 3)),
}


@pytest.mark.parametrize("case", BROADCASTING)
@pytest.mark.parametrize("form", ["Add", "Mul"])
def test_what_broadcasts_its_input_stays_ahead(case, form):
    """The product would read the input as it was, of another rank or with fewer channels."""
    shape, constant, op_type, weight = BROADCASTING[case]
    b = graphs.Builder(13)
    x = b.op(form, b.input("x", shape), b.constant("c", array(*constant)))
    y = b.op(op_type, x, b.constant("W", array(*weight)))
    b.output(y, [f"d{axis}" for axis in range({"Conv": 4, "Gemm": 2}.get(op_type, max(len(shape), len(constant))))])
    sizes = [1 if isinstance(size, str) else size for size in shape]
    folding = FoldAffine()
    rewritten(b.model(), folding, {"x": RNG.normal(size=sizes).astype(np.float32)}, depth=64, changes=False)
    assert "not one number a channel of what it reads" in folding.left[f"{form}_0"]


def test_channels_are_known_through_nodes_that_keep_the_shape():
    b = graphs.Builder(13)
    x = b.op("Conv", b.input("x", ["n", 2, 6, 6]), b.constant("V", array(3, 2, 1, 1)))
    x = affine(b, b.op("Sigmoid", b.op("Relu", x)), (1, 3, 1, 1))
    b.output(b.op("Conv", x, b.constant("W", array(4, 3, 3, 3))), ["n", 4, 4, 4])
    feeds = {"x": RNG.normal(size=(2, 2, 6, 6)).astype(np.float32)}
    assert rewritten(b.model(), FoldAffine(), feeds, depth=64) == ["Conv", "Relu", "Sigmoid", "Conv"]
