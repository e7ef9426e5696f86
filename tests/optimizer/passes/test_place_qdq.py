"""Plan and placement of QDQ on small graphs: which kernels ONNX Runtime takes, and what they compute."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from graphs import Builder
from int8 import STATIC, converted, decibels, run
from onnxpress.optimizer.planning.plan_int8 import plan_int8
from onnxpress.optimizer.settings.recipe import Recipe

GOOD = 30.0
"""Decibels of a few layers whose codes fill their ranges: each rounding of 8 bits costs between 40 and 50."""


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def conv(b: Builder, x: ir.Value, channels: tuple[int, int], name: str, bias: bool = True, **attributes) -> ir.Value:
    N, C = channels
    inputs = [x, b.constant(f"{name}_w", noise(N, C, 3, 3, seed=len(name)) / 3)]
    if bias:
        inputs.append(b.constant(f"{name}_b", noise(N, seed=N)))
    return b.op("Conv", *inputs, name=name, pads=[1, 1, 1, 1], **attributes)


def image_model(body, opset: int = 17, size: int = 12, channels: int = 8) -> ir.Model:
    b = Builder(opset)
    x = b.input("x", [1, channels, size, size])
    y = body(b, x)
    b.output(y, [None] * 4)
    return b.model()


def check(model: ir.Model, *, kernels: dict[str, int], good: float = GOOD, feeds=None, **settings):
    """The INT8 form runs these kernels, and its results are near with all optimizations and with none."""
    feeds = feeds or {"x": noise(*[d if isinstance(d, int) else 2 for d in model.graph.inputs[0].shape], seed=7)}
    changed, plan, made = converted(model, feeds, **settings)
    have = Counter(node.op_type for node in made.graph)
    assert {op: have[op] for op in kernels} == kernels, have
    for level in ("ALL", "NONE"):
        for a, c in zip(run(model, feeds), run(changed, feeds, level), strict=True):
            assert decibels(a, c) > good, level
    return changed, plan


def test_conv_relu_conv():
    model = image_model(lambda b, x: conv(b, b.op("Relu", conv(b, x, (16, 8), "first")), (4, 16), "second"))
    changed, plan = check(model, kernels={"QLinearConv": 2, "Relu": 0, "QuantizeLinear": 1, "DequantizeLinear": 1})
    assert [d.taken for d in plan.decisions] == [True, True]
    assert not any(node.op_type == "Relu" and node.outputs[0].uses() == () for node in changed.graph)


def test_clip_saturates():
    def body(b, x):
        y = b.op("Clip", conv(b, x, (16, 8), "first"), b.constant("lo", np.float32(0)), b.constant("hi", np.float32(1)))
        return conv(b, y, (4, 16), "second")

    check(image_model(body), kernels={"QLinearConv": 2, "Clip": 0})


def test_clip_without_zero_stays():
    def body(b, x):
        y = b.op(
            "Clip", conv(b, x, (16, 8), "first"), b.constant("lo", np.float32(0.5)), b.constant("hi", np.float32(1))
        )
        return conv(b, y, (4, 16), "second")

    check(image_model(body), kernels={"QLinearConv": 2, "Clip": 1})


def test_grouped_conv_without_bias():
    model = image_model(lambda b, x: conv(b, x, (8, 1), "depthwise", bias=False, group=8))
    check(model, kernels={"QLinearConv": 1})


def test_residual_add_and_global_pool():
    def body(b, x):
        y = b.op("Relu", conv(b, x, (8, 8), "first"))
        z = b.op("Relu", b.op("Add", conv(b, y, (8, 8), "second"), y))
        return conv(b, b.op("GlobalAveragePool", conv(b, z, (8, 8), "third")), (4, 8), "fourth")

    check(image_model(body), kernels={"QLinearConv": 4, "QLinearAdd": 1, "QLinearGlobalAveragePool": 1, "Relu": 0})


def test_concat_split_and_pool():
    def body(b, x):
        y = conv(b, x, (8, 8), "first")
        z = conv(b, x, (8, 8), "second")
        joined = b.op("MaxPool", b.op("Concat", y, z, axis=1), kernel_shape=[2, 2], strides=[2, 2])
        left, right = b.op("Split", joined, b.constant("sizes", np.array([8, 8], np.int64)), axis=1, outputs=2)
        return b.op("Add", conv(b, left, (4, 8), "third"), conv(b, right, (4, 8), "fourth"))

    check(image_model(body), kernels={"QLinearConv": 4, "QLinearConcat": 1, "MaxPool": 0})


def test_moves_share_codes():
    def body(b, x):
        y = conv(b, x, (8, 8), "first")
        y = b.op("Reshape", y, b.constant("shape", np.array([1, 4, 2, 144], np.int64)))
        y = b.op("Transpose", y, perm=[0, 2, 1, 3])
        y = b.op("Reshape", y, b.constant("back", np.array([1, 8, 12, 12], np.int64)))
        return conv(b, y, (4, 8), "second")

    changed, _ = check(image_model(body), kernels={"QLinearConv": 2, "DequantizeLinear": 1})
    scales = {node.outputs[0].name: node.inputs[1] for node in changed.graph if node.op_type == "QuantizeLinear"}
    moved = [scale for name, scale in scales.items() if name.startswith(("Reshape", "Transpose"))]
    assert len({scale.const_value.numpy().item() for scale in moved}) == 1


def test_product_by_a_constant_keeps_codes():
    def body(b, x):
        y = b.op("Mul", conv(b, x, (8, 8), "first"), b.constant("c", np.float32(0.125)))
        return conv(b, y, (4, 8), "second")

    check(image_model(body), kernels={"QLinearConv": 2, "Mul": 0, "QLinearMul": 0, "QuantizeLinear": 1})


@pytest.mark.parametrize("bias", [True, False])
def test_gemm(bias):
    b = Builder(17)
    inputs = [b.input("x", ["batch", 32]), b.constant("w", noise(24, 32))]
    if bias:
        inputs.append(b.constant("c", noise(24)))
    y = b.op("Gemm", *inputs, transB=1, alpha=0.5, beta=2.0, name="first")
    y = b.op("Gemm", b.op("Relu", y), b.constant("v", noise(24, 8)), name="second")
    b.output(y, ["batch", 8])
    changed, _ = check(b.model(), kernels={"QGemm": 2, "Relu": 0})
    assert not [node for node in changed.graph if node.op_type == "Gemm" and node.attributes.get_float("beta", 1) != 1]


def test_matmul_with_bias_and_of_two():
    b = Builder(17)
    x = b.input("x", [1, 6, 32])
    q, k = (
        b.op("Add", b.op("MatMul", x, b.constant(f"{n}w", noise(32, 16, seed=i))), b.constant(f"{n}b", noise(16)))
        for i, n in enumerate("qk")
    )
    y = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 1]), name="scores")
    b.output(y, [1, 6, 6])
    _, plan = check(b.model(), kernels={"MatMul": 0})
    assert len(plan.operators) == 4  # three products and the Transpose


def test_constant_operand_of_add():
    def body(b, x):
        y = b.op("Add", conv(b, x, (8, 8), "first"), b.constant("c", noise(1, 8, 1, 1)))
        return conv(b, y, (4, 8), "second")

    check(image_model(body), kernels={"QLinearConv": 2, "QLinearAdd": 1})


def test_graph_output_inside():
    b = Builder(17)
    x = b.input("x", [1, 8, 12, 12])
    y = b.op("Relu", conv(b, x, (8, 8), "first"))
    b.output(y, [1, 8, 12, 12])
    b.output(conv(b, y, (4, 8), "second"), [1, 4, 12, 12])
    names = [value.name for value in b.graph.outputs]
    changed, _ = check(b.model(), kernels={"QLinearConv": 2})
    assert [value.name for value in changed.graph.outputs] == names


def test_shared_weight():
    b = Builder(17)
    x = b.input("x", ["batch", 16])
    w = b.constant("w", noise(16, 16))
    y = b.op("Gemm", b.op("Gemm", x, w, name="first", alpha=0.25), w, name="second", transB=1)
    b.output(y, ["batch", 16])
    check(b.model(), kernels={"QGemm": 2})


@pytest.mark.parametrize(("dtype", "symmetric"), [(np.int8, False), (np.int8, True), (np.uint8, True)])
def test_types_of_activations(dtype, symmetric):
    model = image_model(lambda b, x: conv(b, b.op("Relu", conv(b, x, (16, 8), "first")), (4, 16), "second"))
    changed, _ = check(model, kernels={}, dtype=dtype, symmetric=symmetric)
    middle = 0 if dtype == np.int8 else 128
    points = {
        node.outputs[0].name: node.inputs[2].const_value.numpy()
        for node in changed.graph
        if node.op_type == "QuantizeLinear"
    }
    assert {point.dtype for point in points.values()} == {np.dtype(dtype)}
    assert (points["x_quantized"] == middle) == symmetric
    assert points[next(name for name in points if "Relu" in name)] == np.iinfo(dtype).min


def test_constant_activation():
    """An input that is always zero has codes, and no scale of zero."""
    model = image_model(lambda b, x: conv(b, x, (4, 8), "only"))
    feeds = {"x": np.zeros((1, 8, 12, 12), np.float32)}
    changed, _, _ = converted(model, feeds, reduce_range=False)  # nothing that could saturate is added up
    (a,), (c,) = run(model, feeds), run(changed, feeds)
    np.testing.assert_allclose(a, c, atol=1e-2)


def test_large_bias_beside_a_small_range():
    b = Builder(17)
    x = b.input("x", [1, 8, 12, 12])
    y = b.op("Conv", x, b.constant("w", noise(4, 8, 1, 1) * 1e-6), b.constant("c", np.full(4, 1e3, np.float32)))
    b.output(y, [1, 4, 12, 12])
    model = b.model()
    feeds = {"x": noise(1, 8, 12, 12) * 1e-3}
    changed, _, _ = converted(model, feeds)
    for level in ("ALL", "NONE"):
        np.testing.assert_allclose(run(model, feeds)[0], run(changed, feeds, level)[0], rtol=1e-2)


REASONS = {
    "no constant weight": lambda b, x: b.op("Conv", x, b.input("w", [4, 8, 1, 1]), name="left"),
    "the weight holds NaN or infinity": lambda b, x: b.op(
        "Conv", x, b.constant("w", np.full((4, 8, 1, 1), np.nan, np.float32)), name="left"
    ),
    "the bias is no constant": lambda b, x: b.op(
        "Conv", x, b.constant("w", noise(4, 8, 1, 1)), b.input("c", [4]), name="left"
    ),
    "ONNX Runtime has no int8 ConvTranspose": lambda b, x: b.op(
        "ConvTranspose", x, b.constant("w", noise(8, 4, 3, 3)), name="left"
    ),
    "excluded": lambda b, x: b.op("Conv", x, b.constant("w", noise(4, 8, 1, 1)), name="excluded_one"),
}


@pytest.mark.parametrize("reason", REASONS)
def test_reasons(reason):
    model = image_model(REASONS[reason])
    recipe = Recipe(scheme="int8-static", exclude=("excluded*",))
    (decision,) = plan_int8(model, recipe).decisions
    assert not decision.taken
    assert reason in decision.reason


def test_kept_and_unusable():
    model = image_model(lambda b, x: conv(b, b.op("Relu", conv(b, x, (16, 8), "first")), (4, 16), "second"))
    plan = plan_int8(model, STATIC, {"x": "holds NaN"}, {"second": "slower"})
    reasons = {d.node.name: d.reason for d in plan.decisions if d.op_type == "Conv"}
    assert reasons == {"first": "x: holds NaN", "second": "slower"}


def test_branches_are_left():
    b = Builder(17)
    x = b.input("x", [1, 8])
    inner = Builder(17)
    y = inner.op("MatMul", x, b.constant("w", noise(8, 8)), name="product")
    inner.output(y, [1, 8])
    other = Builder(17)
    other.output(other.op("Identity", x), [1, 8])
    z = b.op("If", b.input("c", [], ir.DataType.BOOL), name="choice", then_branch=inner.graph, else_branch=other.graph)
    b.output(z, [1, 8])
    (decision,) = plan_int8(b.model(), STATIC).decisions
    assert decision.path == "choice"
    assert "inside a graph" in decision.reason


@pytest.mark.parametrize("clamps", [("six",), ("six", "Relu"), ("Relu", "six"), ("six", "hundred")])
def test_what_is_zero_in_all_data_is_held_within_its_bounds_in_other(clamps):
    """Codes of a scale for want of a better one would let other data through to 255."""

    def body(b, x):
        y = conv(b, x, (4, 8), "first")
        for index, kind in enumerate(clamps):
            if kind == "Relu":
                y = b.op("Relu", y)
                continue
            high = b.constant(f"high{index}", np.float32(6 if kind == "six" else 100))
            y = b.op("Clip", y, b.constant(f"low{index}", np.float32(0)), high)
        return y

    model = image_model(body)
    model.graph.initializers["first_b"].const_value = ir.tensor(np.full(4, -1e3, np.float32), name="first_b")
    changed, _, made = converted(model, {"x": noise(1, 8, 12, 12)})
    assert Counter(node.op_type for node in made.graph)["QLinearConv"] == 1
    (_, scale, zero_point) = changed.graph.outputs[0].producer().inputs
    assert zero_point.const_value.numpy() == 0
    assert 255 * scale.const_value.numpy() == pytest.approx(6)


def test_clip_to_one_number_stays():
    def body(b, x):
        zero = b.constant("zero", np.float32(0))
        return conv(b, b.op("Clip", conv(b, x, (16, 8), "first"), zero, zero), (4, 16), "second")

    changed, _, _ = converted(image_model(body), {"x": noise(1, 8, 12, 12)})
    assert [node.op_type for node in changed.graph].count("Clip") == 1
