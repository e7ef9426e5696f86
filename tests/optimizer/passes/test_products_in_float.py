"""Products that are written as others, and gates that are factored: what is rewritten, what is left and why."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress import models
from onnxpress.optimizer.passes.clean_up import CleanUp
from onnxpress.optimizer.passes.factor_gates import FactorGates
from onnxpress.optimizer.passes.fold_affine import FoldAffine
from onnxpress.optimizer.passes.matmul_to_gemm import MatMulToGemm
from onnxpress.optimizer.passes.split_conv_transpose import SplitConvTranspose
from rewrites import op_types, real_feeds, rewritten

RNG = np.random.default_rng(12)
X = {"x": RNG.normal(0, 3, (2, 4, 6, 5)).astype(np.float32)}


def array(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def transposed(opset=13, size=(2, 2), *, bias=True, inputs=False, **attributes):
    b = graphs.Builder(opset)
    W = b.constant("W", array(4, 3, *size))
    if inputs:
        b.graph.inputs.append(W)
    parameters = [W] + [b.constant("b", array(3))] * bias
    y = b.op("ConvTranspose", b.input("x", ["n", 4, "h", "w"]), *parameters, name="up", **attributes)
    b.output(y, ["n", None, "h2", "w2"])
    return b.model()


@pytest.mark.parametrize("opset", [7, 11, 13, 20])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [2, 3])
def test_conv_transpose_without_overlap(opset, bias, size):
    model = transposed(opset, (size, size), bias=bias, strides=[size, size], kernel_shape=[size, size])
    assert rewritten(model, SplitConvTranspose(), X, depth=8) == ["Conv", "DepthToSpace"]


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ({"strides": [1, 1]}, "overlap"),
        ({"strides": [3, 3]}, "gaps"),
        ({"strides": [2, 2], "pads": [0, 0, 1, 0]}, "cuts its output"),
        ({"strides": [2, 2], "output_padding": [1, 0]}, "size of its output"),
        ({"strides": [2, 2], "output_shape": [11, 10]}, "size of its output"),
        ({"strides": [2, 2], "dilations": [2, 1]}, "dilated"),
        ({"strides": [2, 2], "group": 2}, "groups"),
        ({"strides": [2, 3], "size": (2, 3)}, "no square"),
        ({"strides": [1, 1], "size": (1, 1)}, "overlap"),
        ({"strides": [2, 2], "inputs": True}, "no constant"),
    ],
)
def test_other_conv_transposes_are_left_with_the_reason(case, reason):
    splitting, model = SplitConvTranspose(), transposed(**case)
    assert not splitting(model)
    assert op_types(model) == ["ConvTranspose"]
    assert reason in splitting.left["up"]


def matrix_product(bias, *, rank=2, flipped=False):
    b = graphs.Builder(7)
    x = b.input("x", ["n", "m", 5][-rank:])
    y = b.op("MatMul", x, b.constant("W", array(5, 6)), name="product")
    operands = [y, b.constant("b", bias)]
    b.output(b.op("Add", *operands[:: -1 if flipped else 1]), ["n", "m", 6][-rank:])
    return b.model()


@pytest.mark.parametrize("bias", [array(6), array(1, 6), array(), array(1), array(1, 1)])
@pytest.mark.parametrize("flipped", [False, True])
def test_matmul_with_a_bias_is_gemm(bias, flipped):
    model = matrix_product(bias, flipped=flipped)
    assert rewritten(model, MatMulToGemm(), {"x": array(3, 5)}, depth=8) == ["Gemm"]


def test_other_matmuls_are_left_with_the_reason():
    for case, reason in (
        ({"bias": array(6), "rank": 3}, "not known to be a matrix"),
        ({"bias": array(6), "rank": 1}, "not known to be a matrix"),
        ({"bias": array(3, 6)}, "not one number a column"),
        ({"bias": array(3, 1)}, "not one number a column"),
        ({"bias": array(1, 1, 6)}, "not one number a column"),
    ):
        gemm, model = MatMulToGemm(), matrix_product(**case)
        assert not gemm(model)
        assert reason in gemm.left["product"]


def gated(form, *, gate_shape=(2, 4, 1, 1), read=False):
    b = graphs.Builder(13)
    x, g = b.input("x", ["n", 4, "h", "w"]), b.input("g", ["n", *gate_shape[1:]])
    product = b.op("Mul", *((x, g) if form % 2 else (g, x)))
    b.output(b.op("Add", *((x, product) if form < 2 else (product, x))), ["n", 4, "h", "w"])
    if read:
        b.output(product, ["n", 4, "h", "w"])
    return b.model(), {**X, "g": array(*gate_shape)}


@pytest.mark.parametrize("form", range(4))
def test_gates_are_factored(form):
    model, feeds = gated(form)
    assert rewritten(model, FactorGates(), feeds, depth=4) == ["Add", "Mul"]
    # The sum is that of the small tensor.
    assert list(model.graph[0].outputs[0].shape)[1:] == [4, 1, 1]
    assert not FactorGates()(model)


def test_gates_behind_each_other():
    b = graphs.Builder(13)
    y = b.input("x", ["n", 4, "h", "w"])
    for _ in range(3):
        y = b.op("Relu", b.op("Add", b.op("Mul", b.op("GlobalAveragePool", y), y), y))
    b.output(y, ["n", 4, "h", "w"])
    model = b.model()
    CleanUp()(model)  # for the shapes
    types = rewritten(model, FactorGates(), X, depth=64)
    assert types == ["GlobalAveragePool", "Add", "Mul", "Relu"] * 3


@pytest.mark.parametrize("case", [{"gate_shape": (2, 4, 6, 5)}, {"read": True}])
def test_gates_that_gain_nothing_are_left(case):
    model, feeds = gated(0, **case)
    rewritten(model, FactorGates(), feeds, depth=4, changes=False)


@pytest.mark.real
def test_detector():
    model = ir.load(models.path("ppocr-det"))
    for step in (CleanUp(), FoldAffine()):
        step(model)
    count = len(op_types(model))
    types = rewritten(model, FactorGates(), real_feeds("ppocr-det"), depth=500)
    assert len(types) == count
    types = rewritten(model, SplitConvTranspose(), real_feeds("ppocr-det"), depth=500)
    assert types.count("DepthToSpace") == 2
    assert "ConvTranspose" not in types


@pytest.mark.real
def test_last_product_of_the_residual_net():
    model = ir.load(models.path("resnet-nsfw"))
    CleanUp()(model)
    types = rewritten(model, MatMulToGemm(), real_feeds("resnet-nsfw"), depth=1024)
    assert types[-2:] == ["Gemm", "Softmax"]
