"""Channels of a rounded model have the moments of the float model again, on kernels of int8."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime as ort
import pytest
from graphs import Builder
from int8 import int8_weight
from onnxpress.optimizer.passes.place_qdq import PlaceQdq
from onnxpress.optimizer.passes.restore_moments import RestoreMoments, mendable
from onnxpress.optimizer.planning.plan_int8 import plan_int8
from onnxpress.optimizer.quantization.moments import Moments
from onnxpress.optimizer.runtime.session import open_session, session_options
from onnxpress.optimizer.settings.recipe import Recipe

LEVELS = (ort.GraphOptimizationLevel.ORT_ENABLE_ALL, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)


def network(seed: int = 0) -> ir.Model:
    """Three Convs, one depthwise and without bias, and a Gemm."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    b = Builder(18)
    x = b.input("x", [16, 3, 12, 12])
    y = b.op("Conv", x, b.constant("w1", normal(8, 3, 3, 3)), b.constant("b1", normal(8)), name="c1")
    y = b.op("Relu", y, name="r1")
    y = b.op("Conv", y, b.constant("w2", normal(8, 1, 3, 3)), name="c2", group=8)
    y = b.op("Clip", y, b.constant("low", np.float32(0)), b.constant("high", np.float32(6)), name="r2")
    y = b.op("Conv", y, b.constant("w3", normal(10, 8, 1, 1)), b.constant("b3", normal(10)), name="c3")
    y = b.op("Relu", y, name="r3")
    y = b.op("GlobalAveragePool", y, name="pool")
    y = b.op("Flatten", y, name="flat")
    y = b.op("Gemm", y, b.constant("w4", normal(5, 10)), b.constant("b4", normal(5)), name="g", transB=1)
    b.output(y, [16, 5])
    return b.model()


def values(model, names, feeds, level=LEVELS[0]):
    """Values of a model, inner ones too."""
    proto = ir.to_proto(model)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = session_options()
    options.graph_optimization_level = level
    return dict(zip(names, open_session(proto.SerializeToString(), options).run(list(names), feeds), strict=True))


def moments(found):
    """As if of so many values that their deviations are believed."""
    return {name: dataclasses.replace(Moments.of(array, 1), count=10**9) for name, array in found.items()}


RNG = np.random.default_rng(4)
RESULTS = ["c1_out", "c2_out", "c3_out", "g_out"]
FEEDS = {"x": np.random.default_rng(9).normal(1, 1, (16, 3, 12, 12)).astype(np.float32)}


def coarse(_node, _name, weight, axis, least):
    """Four bits, so that moments move a lot."""
    return int8_weight(np.asarray(weight).round(1), axis, reduce_range=True, least_scale=least)


def of_one_scale(_node, _name, weight, axis, _least):
    return int8_weight(np.round(weight, 1), axis, per_channel=False)


def rounded(model, per_channel=True):
    recipe = Recipe(scheme="int8-static")
    plan = plan_int8(model, recipe)
    names = [value.name for value in plan.tensors()]
    inner = values(model, [name for name in names if name != "x"], FEEDS) | FEEDS
    ranges = {name: (float(inner[name].min()), float(inner[name].max())) for name in names}
    assert PlaceQdq(plan, ranges, coarse if per_channel else of_one_scale)(model)
    common.RemoveUnusedNodesPass()(model)  # Relu and Clip, that saturation replaces
    return model


def measure(model, names):
    return moments(values(model, names, FEEDS))


def test_moments_come_back_and_codes_stay():
    reference = measure(network(), RESULTS)
    model = rounded(network())
    before = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    wrong = measure(model, ["c1_out", "c2_out", "c3_out"])
    restore = RestoreMoments(reference, measure)(model)
    assert restore.left == {}
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    mended = measure(model, ["c1_out", "c2_out", "c3_out"])
    for name, have in mended.items():
        want, was = reference[name], wrong[name]
        # With other outputs other groups are fused, and an activation here and there has the code beside.
        np.testing.assert_allclose(have.channel_mean, want.channel_mean, atol=1e-3)
        np.testing.assert_allclose(have.channel_std, want.channel_std, rtol=1e-3)
        assert np.abs(was.channel_mean - want.channel_mean).max() > 1e-2
    after = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    for name in ("w1", "w2", "w3", "w4"):
        np.testing.assert_array_equal(before[f"{name}_quantized"], after[f"{name}_quantized"])
    assert not [name for name in after if after[name].ndim and not model.graph.initializers[name].uses()]


@pytest.mark.parametrize("level", LEVELS)
def test_the_output_is_nearer(level):
    want = values(network(), ["g_out"], FEEDS)["g_out"]
    reference = measure(network(), RESULTS)
    model = rounded(network())
    error = [np.square(values(model, ["g_out"], FEEDS, level)["g_out"] - want).sum()]
    RestoreMoments(reference, measure)(model)
    error.append(np.square(values(model, ["g_out"], FEEDS, level)["g_out"] - want).sum())
    assert error[1] < 0.3 * error[0]


def test_int8_kernels_stay(tmp_path):
    model = rounded(network())
    RestoreMoments(measure(network(), RESULTS), measure)(model)
    options = session_options()
    options.optimized_model_filepath = str(tmp_path / "out.onnx")
    open_session(ir.to_proto(model).SerializeToString(), options)
    kinds = [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node]
    assert kinds.count("QLinearConv") == 3
    assert kinds.count("QGemm") == 1


def test_biases_are_in_units_of_the_product():
    model = rounded(network())
    RestoreMoments(measure(network(), RESULTS), measure)(model)
    for node in model.graph:
        if node.op_type in ("Conv", "Gemm"):
            x, weight, bias = (value.producer().inputs[1].const_value.numpy() for value in node.inputs)
            np.testing.assert_array_equal(bias, x * weight)


def test_one_scale_in_all_keeps_the_deviation():
    reference = measure(network(), RESULTS)
    model = rounded(network(), per_channel=False)
    RestoreMoments(reference, measure)(model)
    mended = measure(model, ["c1_out"])["c1_out"]
    np.testing.assert_allclose(mended.channel_mean, reference["c1_out"].channel_mean, atol=1e-3)
    assert np.abs(mended.channel_std / reference["c1_out"].channel_std - 1).max() > 1e-3


def test_what_is_left_and_why():
    float_model, model = network(), rounded(network())
    found = {node.name: node for node in model.graph}
    c2, good = found["c2"], Moments(np.zeros(8), np.ones(8), 800)

    def left(reference, measured):
        restore = RestoreMoments(reference, lambda _model, _names: measured)
        result = restore(model)
        assert not result
        return result.left

    others = dict.fromkeys(("c2", "c3", "g"), "no moments")
    assert left({}, {}) == {"c1": "no moments", **others}
    assert left({"c1_out": good}, {}) == {"c1": "no moments", **others}
    few = Moments(np.zeros(3), np.ones(3), 300)
    assert left({"c1_out": good}, {"c1_out": few})["c1"] == "the moments are not finite numbers, one a channel"
    huge = Moments(np.full(8, 1e30), np.ones(8), 800)
    assert left({"c2_out": huge}, {"c2_out": good})["c2"] == "the bias would not fit int32"
    one = Moments(np.append(np.full(7, 0.5), 1e30), np.ones(8), 800)
    codes = c2.inputs[1].producer().inputs[0]
    assert RestoreMoments({"c2_out": one}, lambda _model, _names: {"c2_out": good})(model)  # all channels but one
    assert c2.inputs[1].producer().inputs[0] is codes
    bias = c2.inputs[2].producer().inputs[0].const_value.numpy()
    assert bias[7] == 0
    assert mendable(float_model, {"c1_out"}) == []
    assert set(RestoreMoments({"c1_out": good}, measure)(float_model).left) == {"c1", "c2", "c3", "g"}


def test_a_result_that_is_an_output_is_found_under_its_old_name():
    b = Builder(18)
    y = b.op("Conv", b.input("x", [16, 3, 12, 12]), b.constant("w1", RNG.standard_normal((4, 3, 3, 3), np.float32)),
             name="c1")  # fmt: skip
    b.output(y, [16, 4, 10, 10])
    model = b.model()
    reference = measure(model, ["c1_out"])
    rounded(model)
    (conv,) = mendable(model, reference)
    assert conv.outputs[0].name == "c1_out_float"
    assert RestoreMoments(reference, measure)(model).left == {}
    mended = measure(model, ["c1_out_float"])["c1_out_float"]
    np.testing.assert_allclose(mended.channel_std, reference["c1_out"].channel_std, rtol=1e-3)
