"""Each rewrite rule that clean-up applies: where it does, where its guard says no, and that the numbers stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxscript.rewriter.rules.common as onnxscript_rules
import pytest
import rule_cases
from graphs import Builder
from onnxpress.optimizer.passes.clean_up import CleanUp
from onnxpress.optimizer.passes.trusted_rules import TRUSTED
from rewrites import LEVELS, run
from rule_cases import APPLIES, FLOAT, INT64, LEFT, ROW, array, clip, ints, sliced

RNG = rule_cases.RNG  # which draws the same in each test
FOLDED_BEFORE = ("no_op_cast_rule", "no_op_expand_rule")


def built(case):
    opset, shape, dtype, build = case
    b = Builder(opset)
    y = build(b, b.input("x", shape, dtype))
    b.graph.outputs.append(y)
    y.type = ir.TensorType(ir.DataType(y.producer().attributes.get_int("to", dtype)))
    return b.model()


def feeds_of(model):
    return {
        value.name: array(*(size if isinstance(size, int) else 4 for size in value.shape), dtype=value.dtype.numpy())
        for value in model.graph.inputs
    }


def compare(model, feeds, cleaned):
    """At each level of optimization at which ONNX Runtime takes the original."""
    ran = 0
    for level in LEVELS:
        try:
            wanted = run(model, feeds, level)
        except Exception:
            continue
        ran += 1
        for a, b in zip(wanted, run(cleaned, feeds, level), strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            np.testing.assert_allclose(
                b, a, rtol=1e-3 if a.dtype == np.float16 else 1e-5 if a.dtype == np.float32 else 1e-9, atol=1e-5
            )
    return ran


def nodes_of(model):
    return [
        (node.op_type, str(node.attributes), len(node.inputs)) for node in model.graph if node.op_type != "Constant"
    ]


def with_and_without(model, rule):
    """The model after clean-up with a rule, and without it."""
    other = {"constant folding"} if rule in FOLDED_BEFORE else set()
    results = []
    for without in (other, {*other, rule}):
        result, clean_up = model.clone(), CleanUp(without)
        clean_up(result)
        assert not clean_up.warnings
        results.append(result)
    return results


def test_each_rule_is_there_and_tried():
    assert set(APPLIES) == {trusted.name for trusted in TRUSTED}
    assert all(hasattr(onnxscript_rules, trusted.name) for trusted in TRUSTED)
    assert {trusted.name for trusted in TRUSTED if trusted.wrong_on} - {case[0] for case in LEFT.values()} == {
        "cast_constant_of_shape_without_value_rule", "collapse_slice2_rule", "one_reshape_matmul_reshape_rule",
    }  # fmt: skip


@pytest.mark.parametrize("rule", APPLIES)
def test_a_rule_applies(rule):
    model = built(APPLIES[rule])
    feeds = feeds_of(model)
    result, without = with_and_without(model, rule)
    assert nodes_of(result) != nodes_of(without)
    compare(model, feeds, result)


@pytest.mark.parametrize("name", LEFT)
def test_a_guard_keeps_a_rule_from_what_it_is_wrong_on(name):
    rule, *case = LEFT[name]
    model = built(case)
    result, without = with_and_without(model, rule)
    assert nodes_of(result) == nodes_of(without)
    compare(model, feeds_of(model), result)


def test_sizes_of_one_name_may_differ():
    b = Builder(17)
    x = b.input("x", ["?", 6])
    y = sliced(b, x, [1, 0], [9, 6], [0, 1], [1, 1])
    b.output(y, ["?", 6])
    model = b.model()
    result, _ = with_and_without(model, "collapse_slice2_rule")
    assert compare(model, {"x": array(4, 6)}, result)


def test_sizes_that_are_only_stated_may_be_wrong():
    b = Builder(17)
    x, ends = b.input("x", ROW), b.input("ends", [1], INT64)
    y = b.op("Slice", x, ints(b, 0), ends, ints(b, 1), ints(b, 1))
    b.output(b.op("Neg", y), [4, 6])
    y.shape, y.type = ir.Shape(ROW), ir.TensorType(FLOAT)
    model = b.model()
    result, _ = with_and_without(model, "collapse_slice2_rule")
    assert compare(model, {"x": array(4, 6), "ends": np.array([2])}, result)


def test_rules_do_not_take_each_others_names():
    b = Builder(17)
    x = b.input("x", ["N", 2, 3])
    for low, high in ((-1, 0.5), (-0.2, 0.1)):
        b.output(clip(b, clip(b, x, low, 1), -2, high), ["N", 2, 3])
    for axis in (1, 2):
        b.output(b.op("Flatten", x, axis=axis), ["M", "K"])
    model = b.model()
    result = model.clone()
    CleanUp()(result)
    assert [node.op_type for node in result.graph] == ["Clip", "Clip", "Reshape", "Reshape"]
    assert compare(model, {"x": array(4, 2, 3)}, result) == 2


@pytest.mark.parametrize("second", ["Relu", "Clip"])
def test_a_value_of_unknown_type(second):
    b = Builder(17)
    b.graph.opset_imports["com.microsoft"] = 1
    h = clip(b, b.op("QuickGelu", b.input("x", ROW), domain="com.microsoft"), -1, 0.5)
    b.output(b.op("Relu", h) if second == "Relu" else clip(b, h, -0.5, 2), ROW)
    model = b.model()
    result = model.clone()
    CleanUp()(result)
    assert compare(model, {"x": array(4, 6)}, result) == 2


def test_no_rule_looks_into_functions():
    b = Builder(17)
    b.output(b.op("Twice", b.input("x", ROW), domain="onnxpress"), ROW)
    a = ir.Value(name="a")
    first = ir.node("Relu", [a])
    second = ir.node("Relu", first.outputs)
    graph = ir.Graph([a], second.outputs, nodes=[first, second], opset_imports={"": 17})
    function = ir.Function("onnxpress", "Twice", graph=graph, attributes=[])
    model = ir.Model(b.graph, ir_version=9, functions=[function])
    CleanUp()(model)
    assert [node.op_type for node in next(iter(model.functions.values()))] == ["Relu", "Relu"]
