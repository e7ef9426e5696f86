"""A Reshape of a constant becomes a constant; others stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import Builder
from onnxpress import models
from onnxpress.optimizer import storage
from onnxpress.optimizer.passes import CleanUp
from onnxpress.optimizer.passes.fold_reshape import FoldReshape
from onnxpress.optimizer.passes.int8_operators import Operator, understand
from rewrites import rewritten

X = {"x": np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)}


def product(shape, override=None, output=False, **attributes):
    b = Builder(17)
    W = b.constant("W", np.random.default_rng(1).standard_normal((4, 6, 1, 1)).astype(np.float32))
    sizes = b.constant("shape", np.array(shape, np.int64))
    b.graph.inputs.extend({"W": [W], "shape": [sizes]}.get(override, []))
    folded = b.op("Reshape", W, sizes, **attributes)
    if output:
        b.output(folded, [4, 6])
    b.output(b.op("Gemm", b.input("x", [2, 6]), folded, transB=1), [2, 4])
    return b.model()


@pytest.mark.parametrize("shape", [(4, 6), (0, 6), (-1, 6), (0, -1)])
def test_the_weight_gets_the_shape(shape):
    model = product(shape)
    assert rewritten(model, FoldReshape(), X, depth=1) == ["Gemm"]
    assert model.graph[0].inputs[1].shape == ir.Shape([4, 6])
    assert FoldReshape()(model) is False


@pytest.mark.parametrize("override", ["W", "shape"])
def test_what_a_caller_may_override_stays(override):
    assert FoldReshape()(product((4, 6), override)) is False


def test_an_output_stays():
    assert FoldReshape()(product((4, 6), output=True)) is False


@pytest.mark.parametrize("shape", [(4, 5), (-1, 5), (-1, -1), (4, 6, 1, 1, 0), (-2, 6)])
def test_a_shape_that_does_not_fit_stays(shape):
    assert FoldReshape()(product(shape)) is False


def test_zero_may_be_a_size():
    assert FoldReshape()(product((0, 6), allowzero=1)) is False


def test_readers_in_several_shapes():
    b = Builder(17)
    W = b.constant("W", np.random.default_rng(1).standard_normal((6, 6)).astype(np.float32))
    x = b.input("x", [2, 6])
    for count in (1, 2):
        folded = b.op("Reshape", W, b.constant(f"shape{count}", np.array([count, 6, 6 // count], np.int64)))
        b.output(b.op("MatMul", x, folded), [count, 2, 6 // count])
    b.output(b.op("MatMul", x, W), [2, 6])
    model = b.model()
    assert rewritten(model, FoldReshape(), X, depth=1) == ["MatMul"] * 3
    assert [list(node.inputs[1].shape) for node in model.graph] == [[1, 6, 6], [2, 6, 3], [6, 6]]


@pytest.mark.real
def test_the_classifier_of_inception_has_a_weight():
    model = storage.load(models.path("light-inception-v1"))
    CleanUp()(model)
    (gemm,) = (node for node in model.graph if node.op_type == "Gemm")
    operator = understand(gemm)
    assert isinstance(operator, Operator)
    assert operator.parameters == 1024 * 1000
