"""Normalizations by the root mean square become one node, and mean the same."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress.optimizer.passes.recognise_rms_norms import RecogniseRmsNorms
from sessions import options

SIZE = 24


def model(spelling="div", *, square="Pow", scale=SIZE, axis=-1, read=False):
    b = graphs.Builder()
    x = b.input("x", ["batch", "sequence", SIZE])
    number = [0]

    def one(value, dtype=np.float32):
        number[0] += 1
        return b.constant(f"one_{number[0]}", np.array(value, dtype))

    power = b.op("Pow", x, one(2.0)) if square == "Pow" else b.op("Mul", x, x)
    mean = b.op("ReduceMean", power, one([axis], np.int64), keepdims=1)
    root = b.op("Sqrt", b.op("Add", one(1e-3), mean))
    for value in (power, mean, root):
        value.type = ir.TensorType(ir.DataType.FLOAT)
    if spelling == "div":
        y = b.op("Div", x, root)
    elif spelling == "one over":
        y = b.op("Mul", b.op("Div", one(1.0), root), x)
    else:
        y = b.op("Mul", x, b.op("Reciprocal", root))
    weight = np.random.default_rng(0).standard_normal(scale).astype(np.float32)
    y = b.op("Mul", y, b.constant("scale", weight), name="norm")
    b.output(y, ["batch", "sequence", SIZE])
    if read:
        b.output(root, ["batch", "sequence", 1])
    return b.model()


def run(model, x):
    # As it is written: ONNX Runtime 1.23 fuses some spellings by itself, with another epsilon.
    level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options(graph_optimization_level=level))
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("square", ["Pow", "Mul"])
@pytest.mark.parametrize("spelling", ["div", "one over", "reciprocal"])
def test_means_the_same(spelling, square):
    x = np.random.default_rng(1).standard_normal((2, 5, SIZE)).astype(np.float32)
    made = model(spelling, square=square)
    want = run(made, x)
    norms = RecogniseRmsNorms()
    norms(made)
    assert [(node.op_type, node.name) for node in made.graph] == [("SimplifiedLayerNormalization", "norm")]
    assert len(norms.made) == 1
    np.testing.assert_allclose(run(made, x), want, atol=1e-6)
    scale = made.graph.initializers["scale"].const_value.numpy()
    np.testing.assert_allclose(want, x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * scale, atol=1e-6)


@pytest.mark.parametrize("form", [{"scale": 1}, {"axis": 1}, {"read": True}, {"scale": (1, SIZE)}])
def test_others_are_left(form):
    made = model(**form)
    assert not RecogniseRmsNorms()(made).modified
    assert "SimplifiedLayerNormalization" not in [node.op_type for node in made.graph]


def test_an_output_of_the_model_keeps_the_names_of_its_sizes():
    made = model()
    made.graph.inputs[0].shape = ir.Shape([None, None, SIZE])
    RecogniseRmsNorms()(made)
    assert made.graph.outputs[0].shape == ir.Shape(["batch", "sequence", SIZE])
