"""Smoothed products compute the same in float and nearer to it in 8 bits; what is left has a reason."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime as ort
import pytest
from graphs import Builder
from int8 import int8_weight
from onnxpress.optimizer.calibration.statistics import StatisticsSpec, TensorStatistics
from onnxpress.optimizer.passes.place_qdq import PlaceQdq
from onnxpress.optimizer.passes.smooth_matmul import SmoothMatMul, smoothable
from onnxpress.optimizer.planning.plan_int8 import plan_int8
from onnxpress.optimizer.runtime.session import open_session, session_options
from onnxpress.optimizer.settings.recipe import Recipe

LEVELS = (ort.GraphOptimizationLevel.ORT_ENABLE_ALL, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
K = 32
RNG = np.random.default_rng(5)
FEEDS = {"x": RNG.standard_normal((6, 10, K)).astype(np.float32)}


def observe(x, gram=True):
    made = TensorStatistics(StatisticsSpec(histogram=False, channel_axis=-1, gram=gram))
    made.update(np.asarray(x, np.float32))
    return made


def outliers():
    """Sizes of channels, three of them far out, as in language models."""
    sizes = RNG.uniform(0.5, 1.5, K)
    sizes[[3, 17, 30]] = [40, -60, 25]
    return sizes.astype(np.float32)


def weight(*shape):
    return (RNG.standard_normal(shape) / 6).astype(np.float32)


def encoder(residual, decomposed=False):
    """A norm of outlier channels, read by two MatMuls and a Gemm's worth of bias; a residual Add where asked for."""
    b = Builder()
    x = b.input("x", [6, 10, K])
    gamma, beta = b.constant("gamma", outliers()), b.constant("beta", weight(K))
    if decomposed:
        y = b.op("LayerNormalization", x, b.constant("one", np.ones(K, np.float32)), name="norm", axis=-1)
        y = b.op("Add", b.op("Mul", y, gamma, name="scaled"), beta, name="n")
    else:
        y = b.op("LayerNormalization", x, gamma, beta, name="n", axis=-1)
    q = b.op(
        "Add", b.constant("bq", weight(24)), b.op("MatMul", y, b.constant("wq", weight(K, 24)), name="q"), name="qa"
    )
    k = b.op("MatMul", y, b.constant("wk", weight(K, 24)), name="k")
    z = b.op("Add", q, b.op("Tanh", k, name="t"), name="z")
    b.output(z, [6, 10, 24])
    if residual:
        b.output(b.op("Add", y, x, name="res"), [6, 10, K])
    return b.model()


def run(model, level=LEVELS[0], names=()):
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    proto = ir.to_proto(model)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = session_options()
    options.graph_optimization_level = level
    return open_session(proto.SerializeToString(), options).run(None, FEEDS)


def smoothed(model, insert=False, gram=True):
    smooth = SmoothMatMul({"n_out": observe(run(model, names=["n_out"])[-1], gram)}, insert)
    return smooth, smooth(model)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("residual", "decomposed"), [(False, False), (False, True), (True, False)])
def test_the_model_computes_the_same(level, residual, decomposed):
    model = encoder(residual, decomposed)
    before = len(model.graph)
    want = run(model, level)
    smooth, changed = smoothed(model, insert=True)
    assert changed
    found = smooth.smoothed["n_out"]
    assert found.inserted == residual
    assert len(model.graph) == before + residual
    assert found.error < 0.3
    for got, expected in zip(run(model, level), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    if not residual:
        inner = run(model, level, ["n_out"])[-1]
        # The channels of outliers are no longer far out.
        ranges = np.abs(inner).max(axis=(0, 1))
        assert ranges.max() < 8 * np.median(ranges)


def in_int8(model):
    recipe = Recipe(scheme="int8-static")
    plan = plan_int8(model, recipe)
    names = [value.name for value in plan.tensors()]
    inner = dict(zip(names, run(model, names=names)[-len(names) :], strict=True))
    ranges = {name: (float(inner[name].min()), float(inner[name].max())) for name in names}
    round_weight = lambda _node, _name, w, axis, least: int8_weight(w, axis, least_scale=least)  # noqa: E731
    assert PlaceQdq(plan, ranges, round_weight)(model)
    common.RemoveUnusedNodesPass()(model)
    return model


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("gram", [False, True])
def test_int8_is_nearer_to_float(residual, gram):
    RNG.bit_generator.state = np.random.default_rng(6).bit_generator.state
    model = encoder(residual)
    want = run(model)[0]
    plain = np.square(run(in_int8(model.clone()))[0] - want).sum()
    smooth, _ = smoothed(model, insert=True, gram=gram)
    better = np.square(run(in_int8(model))[0] - want).sum()
    assert better < 0.4 * plain
    # The model of the error is right about the MatMuls; Tanh behind one of them dampens it.
    assert 0.3 < better / plain / smooth.smoothed["n_out"].error < 3


def test_a_gemm_and_a_linear_maker():
    b = Builder()
    w = weight(K, 12) * outliers()[:, None]
    y = b.op("Gemm", b.input("x", [8, 12]), b.constant("w1", w), b.constant("b1", weight(K)), name="g1", transB=1)
    y = b.op("Relu", y, name="r")
    b.output(b.op("Gemm", y, b.constant("w2", weight(9, K)), name="g2", transB=1), [8, 9])
    model, x = b.model(), RNG.standard_normal((8, 12)).astype(np.float32)

    def values():
        proto = ir.to_proto(model)
        proto.graph.output.append(onnx.ValueInfoProto(name="r_out"))
        return open_session(proto.SerializeToString(), session_options()).run(None, {"x": x})

    want, inner = values()
    smooth = SmoothMatMul({"r_out": observe(inner)})
    assert smooth(model)
    assert smooth.left == {"g1": "no statistics of its input"}
    np.testing.assert_allclose(values()[0], want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_a_gated_layer():
    """up(x) Sigmoid(gate(x)): the half that is linear takes the scale."""
    b = Builder()
    x = b.input("x", [8, 12])
    gate = b.op("Sigmoid", b.op("MatMul", x, b.constant("wg", weight(12, K)), name="gate"), name="s")
    up = b.op("MatMul", x, b.constant("wu", weight(12, K) * outliers()), name="up")
    y = b.op("Mul", gate, up, name="gated")
    b.output(b.op("MatMul", y, b.constant("wd", weight(K, 9)), name="down"), [8, 9])
    model, feeds = b.model(), {"x": RNG.standard_normal((8, 12)).astype(np.float32)}
    proto = ir.to_proto(model)
    proto.graph.output.append(onnx.ValueInfoProto(name="gated_out"))
    want, inner = open_session(proto.SerializeToString(), session_options()).run(None, feeds)
    smooth = SmoothMatMul({"gated_out": observe(inner)})
    assert smooth(model)
    assert not smooth.smoothed["gated_out"].inserted
    got = open_session(ir.to_proto(model).SerializeToString(), session_options()).run(None, feeds)[0]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_what_is_left_and_why():
    model = encoder(residual=True)
    smooth, changed = smoothed(model)
    assert not changed
    assert set(smooth.left.values()) == {"others read the tensor too"}
    even = RNG.uniform(-1, 1, (500, K))
    for seen, reason in [
        (None, "no statistics of its input"),
        (TensorStatistics(), "no statistics of its input"),
        (observe(np.ones((2, 3))), "the statistics of its input are not finite numbers, one a channel"),
        (observe(even), "little to gain"),
        (observe(np.zeros((2, K))), "little to gain"),
        (observe(np.zeros((0, K))), "no statistics of its input"),
    ]:
        statistics = {} if seen is None else {"n_out": seen}
        smooth = SmoothMatMul(statistics)
        assert not smooth(encoder(residual=False))
        assert smooth.left == {"q": reason, "k": reason}


def test_no_mul_behind_codes():
    """The result of a product that only moves comes as codes: a Mul would round it once more."""
    b = Builder()
    y = b.op("MatMul", b.input("x", [6, 10, K]), b.constant("w1", weight(K, K) * outliers()), name="m1")
    y = b.op("Transpose", y, name="t", perm=[1, 0, 2])
    b.output(b.op("MatMul", y, b.constant("w2", weight(K, 8)), name="m2"), [10, 6, 8])
    smooth = SmoothMatMul({"t_out": observe(RNG.standard_normal((5, K)) * outliers())}, insert=True)
    assert not smooth(b.model())
    assert smooth.left["m2"] == "its input may come in codes, which a Mul would round again"


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("insert", [False, True])
def test_smoothable_names_what_the_pass_takes(residual, insert):
    model = encoder(residual)
    names = set(smoothable(model, insert))
    assert names == ({"n_out"} if insert or not residual else set())
    assert set(smoothed(model, insert)[0].smoothed) == names


def test_tensors_on_the_way_count_where_they_are_rounded():
    """A channel that a Relu leaves next to nothing of is large before it: what blows it up costs all others there."""
    b = Builder()
    y = b.op("MatMul", b.input("x", [6, 10, K]), b.constant("w1", weight(K, K)), name="m1")
    y = b.op("Relu", b.op("Mul", y, b.constant("half", np.float32(0.5)), name="h"), name="r")
    b.output(b.op("MatMul", y, b.constant("w2", weight(K, 8)), name="m2"), [6, 10, 8])
    before = RNG.standard_normal((500, K))
    before[:, ::2] -= 4
    behind = np.maximum(before / 2, 0)
    behind[:, ::4] *= 1e-2
    assert smoothable(b.model()) == {"r_out": ["h_out", "m1_out"]}
    rounded = {"r_out": observe(behind), "m1_out": observe(before)}
    harmful, harmless = SmoothMatMul({"r_out": rounded["r_out"]}), SmoothMatMul(rounded)
    model = b.model()
    assert not harmless(model)
    assert harmless.left["m2"] == "little to gain"
    assert harmful(model)  # were nothing but its own input rounded
