"""Products of the same tensor become one, and their rounded weights keep every code."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress.optimizer.conversion.pipeline import optimize
from onnxpress.optimizer.passes.merge_products import MergeProducts
from onnxpress.optimizer.settings.recipe import Override, Recipe
from sessions import options

K, SIZES = 64, (48, 32, 80)


def model(*, biases=(False, False, False), shared=False, output=False):
    b = graphs.Builder()
    x = b.input("x", ["batch", K])
    total, whole, one = None, [], None
    for index, (size, bias) in enumerate(zip(SIZES, biases, strict=True)):
        size = SIZES[0] if shared else size
        weight = one if shared and one is not None else b.constant(f"w{index}", graphs.weight(K, size, index))
        one = weight
        y = b.op("MatMul", x, weight, name=f"product_{index}")
        if bias:
            y = b.op("Add", y, b.constant(f"b{index}", graphs.weight(1, size, 9)[0]), name=f"add_{index}")
        whole.append(y)
        y = b.op("ReduceSum", b.op("Tanh", y), keepdims=0, name=f"reduce_{index}")
        total = y if total is None else b.op("Add", total, y)
    b.output(total, [])
    if output:
        b.output(whole[0], ["batch", SIZES[0]])
    return b.model()


def run(model):
    fed = {"x": np.random.default_rng(0).standard_normal((7, K)).astype(np.float32)}
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options()).run(None, fed)[0]


def operators(model):
    return [node.op_type for node in model.graph]


def quantized(made, **recipe):
    optimize(made, Recipe(scheme="int4", accuracy_level=0, **recipe))
    return made


@pytest.mark.parametrize("biases", [(False, False, False), (True, False, True)])
@pytest.mark.parametrize("rounded", [False, True])
def test_means_the_same(biases, rounded):
    made = model(biases=biases)
    if rounded:
        quantized(made)
    want = run(made)
    merge = MergeProducts()
    merge(made)
    product = "MatMulNBits" if rounded else "MatMul"
    assert operators(made)[:2] == [product, "Add" if any(biases) and not rounded else "Split"]
    assert operators(made).count(product) == 1
    assert list(merge.merged.values()) == [3]
    np.testing.assert_allclose(run(made), want, rtol=1e-5)


def test_codes_stay():
    apart, merged = quantized(model()), quantized(model())
    MergeProducts()(merged)
    (whole,) = (node for node in merged.graph if node.op_type == "MatMulNBits")
    parts = [node for node in apart.graph if node.op_type == "MatMulNBits"]
    assert whole.attributes["N"].value == sum(SIZES)
    for place in (1, 2, 3):
        want = np.concatenate([node.inputs[place].const_value.numpy() for node in parts])
        np.testing.assert_array_equal(whole.inputs[place].const_value.numpy(), want)


def test_what_is_rounded_otherwise_stays_apart():
    made = quantized(model(), overrides=(Override(match="product_1", block_size=16),))
    merge = MergeProducts()
    merge(made)
    assert list(merge.merged.values()) == [2]
    assert operators(made).count("MatMulNBits") == 2


@pytest.mark.parametrize(("form", "left"), [({"shared": True}, 3), ({"output": True}, 2)])
def test_weights_and_results_of_others_stay(form, left):
    made = model(**form)
    merge = MergeProducts()
    merge(made)
    assert operators(made).count("MatMul") == left
    assert list(merge.merged.values()) == ([] if left == 3 else [2])
