"""Scales folded into what makes inputs of products: the float model stays what it is, and what is left has a reason."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from graphs import Builder
from onnxpress.optimizer import Recipe
from onnxpress.optimizer.graph.scaled_tensor import ScaledTensor
from onnxpress.optimizer.model_io import storage
from onnxpress.optimizer.passes.fold_scales import FoldScales
from onnxpress.optimizer.planning.plan import plan
from onnxpress.optimizer.runtime.session import open_session, session_options

LEVELS = (ort.GraphOptimizationLevel.ORT_ENABLE_ALL, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
K, N = 32, 64
RNG = np.random.default_rng(7)
SCALES = np.exp(RNG.standard_normal(K))
FEEDS = {"x": RNG.standard_normal((2, 5, K)).astype(np.float32)}


def weight(*shape):
    return (RNG.standard_normal(shape) / 6).astype(np.float32)


class Net(Builder):
    """A model of x [2, 5, K] with products at its end."""

    def __init__(self, opset=18):
        super().__init__(opset)
        self.x = self.input("x", [2, 5, K])

    def product(self, x, name, columns=N, rows=K):
        return self.op("MatMul", x, self.constant(f"w_{name}", weight(rows, columns)), name=name)

    def end(self, *values, columns=N):
        for value in values:
            self.output(value, [2, 5, columns])
        return self.model()


def ones(b):
    """Ones that several norms share."""
    return b.graph.initializers.get("ones") or b.constant("ones", np.ones(K, np.float32))


def layer_norm(b):
    return b.op("LayerNormalization", b.x, ones(b), b.constant("beta", weight(K)), name="t", axis=-1)


def decomposed_norm(b):
    mean = b.op("ReduceMean", b.op("Mul", b.x, b.x), b.constant("axes", np.array([-1])))
    y = b.op("Div", b.x, b.op("Sqrt", b.op("Add", mean, b.constant("epsilon", np.float32([1e-6])))))
    return b.op("Mul", b.constant("gamma", 1 + weight(K)), y, name="t")


def rms_norm(b):
    return b.op("RMSNormalization", b.x, b.constant("gamma", 1 + weight(K)), name="t", axis=-1, epsilon=1e-6)


def runtime_norm(b):
    gamma = b.constant("gamma", 1 + weight(K))
    return b.op("SimplifiedLayerNormalization", b.x, gamma, name="t", axis=-1, epsilon=1e-6)


def skip_norm(b):
    skip, bias = b.op("Tanh", b.x), b.constant("bias", weight(K))
    inputs = (b.x, skip, b.constant("gamma", 1 + weight(K)), b.constant("beta", weight(K)), bias)
    b.graph.opset_imports["com.microsoft"] = 1
    return b.op("SkipLayerNormalization", *inputs, name="t", domain="com.microsoft", epsilon=1e-6)


def skip_rms_norm(b):
    inputs = (b.x, b.op("Tanh", b.x), b.constant("gamma", 1 + weight(K)), b.constant("bias", weight(K)))
    b.graph.opset_imports["com.microsoft"] = 1
    return b.op("SkipSimplifiedLayerNormalization", *inputs, name="t", domain="com.microsoft", epsilon=1e-6)


def gate(b):
    act = b.product(b.x, "gate", K)
    return b.op("Mul", b.op("Mul", act, b.op("Sigmoid", act)), b.product(b.x, "up", K), name="t")


def biased(b):
    return b.op("Add", b.product(b.x, "before", K), b.constant("bias", weight(K)), name="t")


def constants(b):
    return b.op("Add", b.op("Mul", b.op("Tanh", b.x), b.constant("by", weight(K))), b.constant("plus", weight(1, K)))


def heads(b, x, name):
    split = b.op("Reshape", x, b.constant(f"split_{name}", np.array([0, 0, 4, K // 4])))
    return b.op("Transpose", split, perm=[0, 2, 1, 3])


def attention(b, repeated=False, kept=False):
    q, k = (heads(b, b.product(b.x, name, K), name) for name in "qk")
    projected = b.op("Add", b.product(b.x, "v", K), b.constant("bv", weight(K)), name="sum_v")
    v = heads(b, projected, "v")
    if repeated:
        v = b.op("Expand", v, b.constant("repeat", np.array([1, 1, 1, 1])))
    if kept:
        b.output(v, [2, 4, 5, K // 4])
    scores = b.op("Softmax", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    context = b.op("Transpose", b.op("MatMul", scores, v, name="attended"), perm=[0, 2, 1, 3])
    return b.op("Reshape", context, b.constant("merge", np.array([0, 0, K])), name="t")


def fused_attention(b):
    b.graph.opset_imports["com.microsoft"] = 1
    inputs = (b.product(b.x, name, K) for name in "qkv")
    return b.op("MultiHeadAttention", *inputs, name="t", domain="com.microsoft", num_heads=4)


MAKERS = {
    "layer norm": layer_norm, "decomposed norm": decomposed_norm, "norm of the runtime": runtime_norm,
    "skip norm": skip_norm, "skip RMS norm": skip_rms_norm, "gate": gate, "bias": biased, "constants": constants,
    "attention": attention, "fused attention": fused_attention,
}  # fmt: skip


def run(model, level=LEVELS[0], names=()):
    proto = ir.to_proto(model)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = session_options()
    options.graph_optimization_level = level
    return open_session(proto.SerializeToString(), options).run(None, FEEDS)


def fold(model, *names):
    """Fold the same scales into tensors of these names."""
    step = FoldScales(plan(model, Recipe(scheme="int4")), dict.fromkeys(names, SCALES))
    return step(model)


def check_same(model, *names):
    before = [run(model, level) for level in LEVELS]
    inner = run(model, names=names)[len(before[0]) :]
    result = fold(model, *names)
    assert result.modified
    if not any(node.op_type == "SimplifiedLayerNormalization" for node in model.graph):  # which onnx does not know
        onnx.checker.check_model(ir.to_proto(model))
    for level, wanted in zip(LEVELS, before, strict=True):
        for got, expected in zip(run(model, level), wanted, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    for got, expected in zip(run(model, names=names)[len(before[0]) :], inner, strict=True):
        np.testing.assert_allclose(got * SCALES, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    return result


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_the_model_computes_the_same(maker):
    b = Net()
    y = maker(b)
    model = b.end(b.product(y, "one"), b.product(y, "two"))
    count = len(model.graph)
    result = check_same(model, y.name)
    assert "one" not in result.left
    assert len(model.graph) == count


def test_a_norm_of_a_newer_opset():
    b = Net(23)
    y = rms_norm(b)
    check_same(b.end(b.product(y, "one")), y.name)


def test_a_gemm_on_both_sides():
    b = Builder()
    x = b.input("x", [10, K])
    y = b.op("Gemm", x, b.constant("w1", weight(K, K)), b.constant("b1", weight(K)), name="before", transB=1, alpha=0.5)
    z = b.op("Gemm", b.op("Relu", y, name="t"), b.constant("w2", weight(N, K)), name="behind", transB=1)
    b.output(z, [10, N])
    model, feeds = b.model(), {"x": FEEDS["x"].reshape(10, K)}
    session = lambda: open_session(ir.to_proto(model).SerializeToString(), session_options())  # noqa: E731
    (wanted,) = session().run(None, feeds)
    assert fold(model, "t_out")
    np.testing.assert_allclose(session().run(None, feeds)[0], wanted, rtol=1e-4, atol=1e-5)


def test_a_chain_of_folds_and_what_it_reads():
    """Up is a reader of one tensor and a maker of another; only what was asked for is folded."""
    b = Net()
    y = layer_norm(b)
    act = b.product(y, "gate", K)
    z = b.op("Mul", b.op("Sigmoid", act), b.product(y, "up", K), name="z")
    model = b.end(b.product(z, "down"))
    given = {name: model.graph.initializers[f"w_{name}"].const_value.numpy() for name in ("gate", "up", "down")}
    check_same(model, y.name, z.name)
    read = {name: model.graph.initializers[f"w_{name}"].const_value.numpy() for name in given}
    np.testing.assert_allclose(read["gate"], given["gate"] * SCALES[:, None], rtol=1e-6)
    np.testing.assert_allclose(read["up"], given["up"] * SCALES[:, None] / SCALES, rtol=1e-6)
    np.testing.assert_allclose(read["down"], given["down"] * SCALES[:, None], rtol=1e-6)


def test_shape_is_no_reader():
    b = Net()
    y = layer_norm(b)
    rows = b.op("Reshape", b.product(y, "one"), b.op("Concat", b.op("Shape", y, end=2), b.constant("n", np.array([N])),
                axis=0))  # fmt: skip
    check_same(b.end(rows), y.name)


def left(b, *outputs):
    model = b.end(*outputs)
    before = run(model)
    result = fold(model, "t_out")
    assert not result.modified
    for got, expected in zip(run(model), before, strict=True):
        np.testing.assert_array_equal(got, expected)
    return result.left


def test_what_others_read_is_left():
    b = Net()
    y = layer_norm(b)
    b.output(b.op("Add", y, b.x), [2, 5, K])
    assert left(b, b.product(y, "one")) == {"one": "others read the tensor too"}


def test_an_output_is_left():
    b = Net()
    y = layer_norm(b)
    b.output(y, [2, 5, K])
    assert left(b, b.product(y, "one")) == {"one": "the tensor is an output of the graph"}


def test_shared_weights_are_left():
    b = Net()
    y = layer_norm(b)
    one = b.product(y, "one")
    b.output(b.op("Add", b.x, b.op("ReduceMean", b.graph.initializers["w_one"])), [2, 5, K])
    assert left(b, one) == {"one": "its weight has other readers"}
    b = Net()
    y = biased(b)
    b.output(b.op("Add", b.x, b.op("ReduceMean", b.graph.initializers["w_before"])), [2, 5, K])
    reasons = left(b, b.product(y, "one"))
    assert reasons["one"] == "the weight that makes it has other readers"


def test_a_norm_that_shares_its_scale_gets_a_copy():
    b = Net()
    y = layer_norm(b)
    other = b.op("LayerNormalization", b.x, ones(b), name="other", axis=-1)
    b.output(other, [2, 5, K])
    check_same(b.end(b.product(y, "one")), y.name)


def test_what_takes_no_scale_is_left():
    b = Net()
    assert left(b, b.product(b.op("Sigmoid", b.x, name="t"), "one")) == {"one": "Sigmoid cannot take a scale"}
    b = Net()
    assert left(b, b.product(b.x, "one")) == {"one": "the tensor is no result of a node"}


@pytest.mark.parametrize(("how", "reason"), [
    ({"repeated": True}, "the values of its attention: heads are not split by Reshape and Transpose"),
    ({"kept": True}, "the values of its attention: no projection, or others read it"),
])  # fmt: skip
def test_heads_that_are_repeated_or_kept_are_left(how, reason):
    b = Net()
    assert left(b, b.product(attention(b, **how), "one"))["one"] == reason


def test_nodes_that_are_no_products_of_the_main_graph():
    text = """<ir_version: 9, opset_import: ["" : 18]>
    g (float[2, 5, 32] x, float[32, 5] z, bool which) => (float[2, 5, 64] y, float[5, 64] v) {
        t = Tanh(x)
        y = If(which) <then_branch = a () => (float[2, 5, 64] a) { [inner] a = MatMul(t, A) },
                       else_branch = e () => (float[2, 5, 64] e) { e = Expand(zero, shape) }>
        [turned] v = Gemm <transA = 1> (z, B)
    }"""
    model = onnx.parser.parse_model(text)
    arrays = {"A": weight(K, N), "B": weight(K, N), "zero": np.zeros(1, np.float32), "shape": np.array([2, 5, N])}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    model = ir.from_proto(model)
    model.graph[1].name = "choice"
    reasons = fold(model).left
    assert reasons["turned"] == "Gemm with transA"
    assert any("inner" in name and "cannot be observed" in reason for name, reason in reasons.items())


def test_weights_in_files_stay_there(tmp_path):
    """Of two folds one product is left, along the other axis another."""
    b = Net()
    y = layer_norm(b)
    z = b.product(y, "up", K)
    model = b.end(b.product(z, "down"))
    wanted = run(model)[0]
    storage.save(model, tmp_path / "m.onnx", external=True)
    loaded = storage.load(tmp_path / "m.onnx")
    assert fold(loaded, y.name, z.name).modified
    up = loaded.graph.initializers["w_up"].const_value
    assert isinstance(up, ScaledTensor)
    assert isinstance(up.base, ir.ExternalTensor)
    fold(loaded, y.name)
    assert len(loaded.graph.initializers["w_up"].const_value.factors) == 2
    storage.save(loaded, tmp_path / "n.onnx", external=True)
    (got,) = open_session(str(tmp_path / "n.onnx"), session_options()).run(None, FEEDS)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
