"""Dynamic INT8: what ONNX Runtime computes is what rounding by hand gives."""

from __future__ import annotations

import encoders
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from encoders import HIDDEN, Encoder
from graphs import Builder, matmul_model, weight
from int8 import int8_weight
from onnx.reference import ReferenceEvaluator
from onnxpress.custom_ops import reference
from onnxpress.optimizer import Recipe
from onnxpress.optimizer.families import int8_dynamic as dynamic
from onnxpress.optimizer.passes.clean_up import CleanUp
from onnxpress.optimizer.passes.fuse_attention import FuseAttention
from onnxpress.optimizer.runtime import int8_kernels
from onnxpress.optimizer.runtime.machine import EXACT, products_saturate
from onnxpress.optimizer.settings.recipe import Override
from sessions import RUNS_FLOAT8_PRODUCTS, options

LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
K, N = 64, 48


def converted(model, **values):
    """With weights for this machine's ONNX Runtime, whose sums of others may saturate."""
    return dynamic.convert(model, Recipe(scheme="int8-dynamic", **values), None, lambda *_: None, "model")


def run(model, feeds, level=LEVELS[1], *, exact=False):
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    chosen = options(graph_optimization_level=level)
    if exact:
        chosen.add_session_config_entry(EXACT, "1")
    return ort.InferenceSession(proto.SerializeToString(), chosen).run(None, feeds)


def operators(model):
    return [node.op_type for node in model.graph]


def product(x, W, reduce_range=None):
    """x W with both rounded, the weight as `converted` does by default."""
    narrow = products_saturate() if reduce_range is None else reduce_range
    rounded = int8_weight(np.ascontiguousarray(W), 1, reduce_range=narrow)
    q, scale, zero_point = reference.dynamic_quantize_linear(x)
    rows = reference.matmul_int8(
        q.reshape(-1, x.shape[-1]), rounded.integers(), scale=scale, zero_point=int(zero_point),
        weight_scales=rounded.scale, weight_zero_points=np.int8(0), bias=None,
    )  # fmt: skip
    return rows.reshape(*x.shape[:-1], -1)


def batch(rows=5, columns=K, seed=3):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("reduce_range", [False, True])
def test_product_and_bias(reduce_range):
    model = matmul_model(K, N, bias=True)
    assert converted(model, reduce_range=reduce_range).decisions[0].taken
    x = batch()
    want = product(x, weight(K, N), reduce_range) + weight(1, N, 1)[0]
    found = [ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})]
    fits = reduce_range or not products_saturate()
    if fits or RUNS_FLOAT8_PRODUCTS:  # older versions saturate where they are told to be exact, too
        found.append(run(model, {"x": x}, exact=True))
    if fits:
        found += [run(model, {"x": x}, level) for level in LEVELS]
    for (got,) in found:
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"transA": 1},
        {"transB": 1},
        {"alpha": 0.5},
        {"beta": 2.0},
        {"alpha": -2.0, "beta": 0.5, "transA": 1, "transB": 1},
    ],
)
@pytest.mark.parametrize("c", ["vector", "input", None])
def test_gemm(attributes, c, level):
    b = Builder()
    flips = attributes.get("transA"), attributes.get("transB")
    x = b.input("x", [K, "m"] if flips[0] else ["m", K])
    W = weight(K, N)
    constant = b.constant("W", np.ascontiguousarray(W.T) if flips[1] else W)
    more = {
        "vector": lambda: [b.constant("c", weight(1, N, 1)[0])],
        "input": lambda: [b.input("c", [1, N])],
        None: list,
    }[c]()
    b.output(b.op("Gemm", x, constant, *more, name="gemm", **attributes), ["m", N])
    model = b.model()
    converted(model)
    assert "Gemm" not in operators(model)
    a = batch()
    feeds = {"x": np.ascontiguousarray(a.T) if flips[0] else a}
    feeds |= {"c": weight(1, N, 1)} if c == "input" else {}
    want = product(a, W) * attributes.get("alpha", 1.0)
    want = want + attributes.get("beta", 1.0) * weight(1, N, 1) if c else want
    np.testing.assert_allclose(run(model, feeds, level)[0], want, rtol=1e-5, atol=2e-5)


def test_products_of_one_input_share_its_codes():
    b = Builder()
    x = b.input("x", ["m", K])
    for index in range(3):
        b.output(b.op("MatMul", x, b.constant(f"W{index}", weight(K, N, index)), name=f"product{index}"), ["m", N])
    model = b.model()
    converted(model)
    assert operators(model).count("DynamicQuantizeLinear") == 1
    a = batch()
    for index, got in enumerate(run(model, {"x": a})):
        np.testing.assert_allclose(got, product(a, weight(K, N, index)), rtol=1e-5, atol=1e-5)
    assert int8_kernels.operators(int8_kernels.optimized(model)) == {
        "MatMulIntegerToFloat": 3,
        "DynamicQuantizeLinear": 1,
    }


def test_shared_weight_is_rounded_once():
    b = Builder()
    W = b.constant("W", weight(K, K))
    b.output(b.op("MatMul", b.op("MatMul", b.input("x", ["m", K]), W, name="one"), W, name="two"), ["m", K])
    model = b.model()
    outcome = converted(model, reduce_range=False)
    run(model, {"x": batch()})
    (report,) = outcome.weights()
    assert report.nodes == ("one", "two")
    assert report.sqnr > 35
    assert report.gain >= 0
    assert "W" not in model.graph.initializers


def test_zero_and_constant_activations_stay_finite():
    model = matmul_model(K, N)
    converted(model)
    for value in (0.0, 1.0, -3.0):
        x = np.full((2, K), value, np.float32)
        np.testing.assert_allclose(run(model, {"x": x})[0], product(x, weight(K, N)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: matmul_model(dtype=np.float16), "computes on float16"),
        (lambda: matmul_model(4, 4), "fewer than 1024 weights"),
        (lambda: convolution(), "int8-dynamic does not take Conv"),
    ],
)
def test_left_with_the_reason(model, reason):
    made = model()
    before = operators(made)
    (decision,) = converted(made).decisions
    assert not decision.taken
    assert reason in decision.reason
    assert operators(made) == before


def convolution():
    b = Builder()
    x = b.input("x", [1, 3, 8, 8])
    b.output(b.op("Conv", x, b.constant("W", np.ones((4, 3, 3, 3), np.float32))), [1, 4, 6, 6])
    return b.model()


def attention_by_hand(x, mask, model_weights):
    """The QAttention's meaning: rounded projections, the rest in float."""
    q, k, v = (product(x, model_weights[f"{n}.W"]) + model_weights[f"{n}.b"] for n in ("query", "key", "value"))
    split = [t.reshape(*t.shape[:2], encoders.HEADS, encoders.WIDTH).transpose(0, 2, 1, 3) for t in (q, k, v)]
    scores = split[0] @ split[1].swapaxes(-1, -2) / np.sqrt(np.float32(encoders.WIDTH))
    scores = scores + (1 - mask[:, None, None, :]) * -10000.0
    exp = np.exp(scores - scores.max(-1, keepdims=True))
    return (exp / exp.sum(-1, keepdims=True) @ split[2]).transpose(0, 2, 1, 3).reshape(x.shape)


@pytest.mark.parametrize("level", LEVELS)
def test_attention(level):
    encoder = Encoder()
    weights = {name: v.const_value.numpy() for name, v in encoder.model.graph.initializers.items()}
    outcome = converted(encoder.model)
    assert operators(encoder.model).count("QAttention") == 1
    assert [d.node_name for d in outcome.decisions if d.taken] == [
        "query/MatMul",
        "key/MatMul",
        "value/MatMul",
        "out/MatMul",
    ]
    feeds = encoders.feeds(["x", "attention_mask"])
    (attention,) = [node for node in encoder.model.graph if node.op_type == "QAttention"]
    attention.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    attention.outputs[0].shape = ir.Shape(["batch", "sequence", HIDDEN])
    encoder.model.graph.outputs.append(attention.outputs[0])
    got = run(encoder.model, feeds, level)[1]
    want = attention_by_hand(feeds["x"], feeds["attention_mask"], weights)
    np.testing.assert_allclose(got[:2], want[:2], atol=3e-5)
    np.testing.assert_allclose(got[2], want[2], atol=1e-2)  # scores about -10000 are 2^-10 apart


@pytest.mark.parametrize(
    "values",
    [
        {"exclude": ("key/*",)},
        {"include": ("query/*", "value/*", "out/*")},
        {"overrides": (Override(match="key/MatMul", keep_float=True),)},
    ],
)
def test_recipe_keeps_a_projection_in_float(values):
    encoder = Encoder()
    outcome = converted(encoder.model, **values)
    assert "QAttention" not in operators(encoder.model)
    taken = {d.node_name for d in outcome.decisions if d.taken}
    assert taken == {"query/MatMul", "value/MatMul", "out/MatMul"}
    assert any("key" in what for what in outcome.details["attention"]["left"])
    assert any("key" in what for what in outcome.passes["FuseAttention"].values())


@pytest.mark.parametrize("settings", [{"mask": "relative"}, {"rotated": True}], ids=str)
def test_products_of_an_attention_that_is_more_than_padding_are_rounded(settings):
    encoder = Encoder(**settings)
    CleanUp()(encoder.model)
    outcome = converted(encoder.model, fuse_layers=True)
    found = operators(encoder.model)
    assert found.count("MultiHeadAttention") == 1
    assert found.count("MatMulInteger") == 4
    assert outcome.details["attention"] == {"fused": 1, "left": {}}
    ((reason, count),) = outcome.details["layers"]["left"].items()
    assert "more is added to the scores than a mask of padding" in reason
    assert (outcome.details["layers"]["fused"], count) == (0, 1)


def test_fuse_can_be_turned_off():
    encoder = Encoder()
    outcome = converted(encoder.model, fuse=False)
    assert operators(encoder.model).count("MatMulInteger") == 4
    assert outcome.details["attention"] == {"fused": 0, "left": {}}


def test_attention_that_was_fused_before():
    encoder = Encoder()
    CleanUp()(encoder.model)
    FuseAttention()(encoder.model)
    feeds = encoders.feeds(["x", "attention_mask"])
    want = run(encoder.model, feeds)[0]
    outcome = converted(encoder.model, exclude=("*Attention",))
    assert {d.op_type: d.reason for d in outcome.decisions if not d.taken} == {"Attention": "excluded by the recipe"}
    outcome = converted(encoder.model)
    assert [d.op_type for d in outcome.decisions if d.taken] == ["Attention"]
    got = run(encoder.model, feeds)[0]
    assert (got[:2] * want[:2]).sum() / np.linalg.norm(got[:2]) / np.linalg.norm(want[:2]) > 0.999


def test_attention_of_nan_is_left():
    encoder = Encoder()
    FuseAttention()(encoder.model)
    (node,) = [node for node in encoder.model.graph if node.op_type == "Attention"]
    node.inputs[1].const_value = ir.tensor(np.full((HIDDEN, 3 * HIDDEN), np.nan, np.float32), name=node.inputs[1].name)
    reasons = {d.op_type: d.reason for d in converted(encoder.model).decisions if not d.taken}
    assert reasons == {"Attention": "the weight holds NaN or infinity"}


def test_optimized_graph_runs_on_codes():
    encoder = Encoder()
    converted(encoder.model)
    found = int8_kernels.operators(int8_kernels.optimized(encoder.model))
    assert found["QAttention"] == 1
    assert found["DynamicQuantizeMatMul"] == 1
    assert found["LayerNormalization"] == 1
    assert "MatMul" not in found


@pytest.mark.parametrize("mask", ["none", "added"])
def test_attention_of_an_empty_batch(mask):
    encoder = Encoder(mask=mask)
    fed = encoders.feeds(["x"] if mask == "none" else ["x", "attention_mask"])
    converted(encoder.model)
    assert operators(encoder.model).count("QAttention") == 1
    for level in LEVELS:
        whole = run(encoder.model, fed, level)[0]
        assert run(encoder.model, {name: array[:0] for name, array in fed.items()}, level)[0].shape == (
            0,
            *whole.shape[1:],
        )
        np.testing.assert_array_equal(run(encoder.model, {n: a[:, :0] for n, a in fed.items()}, level)[0], whole[:, :0])


def test_attention_of_a_fixed_batch_is_not_padded():
    encoder = Encoder()
    for value in encoder.model.graph.inputs:
        value.shape = ir.Shape([2, *value.shape[1:]])
    converted(encoder.model)
    assert "QAttention" in operators(encoder.model)
    assert "Pad" not in operators(encoder.model)
