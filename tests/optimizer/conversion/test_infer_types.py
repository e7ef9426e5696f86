"""Types of tensors that a model does not state, where clean-up does not find them."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.conversion.infer_types import infer_types
from onnxpress.optimizer.conversion.pipeline import decide, optimize
from onnxpress.optimizer.errors import OnnxpressError
from onnxpress.optimizer.settings.recipe import Recipe


def attention(dtype: ir.DataType) -> ir.Model:
    """x transpose(x + c) twice, with a type at the input alone."""
    b = graphs.Builder(21)
    x = b.input("x", [2, 8, 16], dtype)
    shifted = b.op("Add", x, b.constant("c", np.ones(16, dtype.numpy())))
    y = b.op("MatMul", x, b.op("Transpose", shifted, perm=[0, 2, 1]), name="scores")
    y = b.op("MatMul", y, b.op("Identity", shifted), name="mix")
    b.output(y, [2, 8, 16], dtype)
    return b.model(10)


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE])
def test_types_are_those_of_onnx(dtype):
    model = attention(dtype)
    infer_types(model)
    assert {value.dtype for node in model.graph for value in node.outputs} == {dtype}


def test_graphs_inside_nodes_get_theirs_and_unknown_operators_none():
    b = graphs.Builder(18)
    x = b.input("x", [4])
    branches = []
    for name in ("then", "else"):
        inner = graphs.Builder(18)
        odd = inner.op("Odd", x, name=f"{name}_odd", domain="test")
        result = inner.op("Add", inner.op("Neg", x, name=f"{name}_neg"), odd, name=f"{name}_sum")
        inner.output(result, [4])
        branches.append(inner.graph)
    node = ir.node(
        "If", [b.input("c", [], ir.DataType.BOOL)],
        attributes={"then_branch": branches[0], "else_branch": branches[1]}, name="choose",
    )  # fmt: skip
    node.outputs[0].name = "y"
    b.graph.append(node)
    b.output(node.outputs[0], [4])
    b.graph.opset_imports["test"] = 1
    infer_types(b.model())
    values = {value.name: value for graph in branches for node in graph for value in node.outputs}
    assert values["then_neg_out"].dtype == values["else_neg_out"].dtype == ir.DataType.FLOAT
    assert values["then_odd_out"].type is None


@pytest.mark.parametrize("scheme", ["fp8-dynamic", "fp8-static"])
@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.DOUBLE])
def test_products_of_other_types_are_left_without_clean_up(scheme, dtype):
    """Such products got scales of float32, which ONNX Runtime refused to load."""
    model = attention(dtype)
    data = [{"x": np.ones((2, 8, 16), dtype.numpy())}] if scheme == "fp8-static" else None
    with pytest.raises(OnnxpressError, match="another type than float32"):
        optimize(model, Recipe(scheme=scheme, clean_up=False), calibration=data and Calibration(data))


def test_products_of_float32_are_taken_without_clean_up():
    decisions = decide(attention(ir.DataType.FLOAT), Recipe(scheme="fp8-dynamic", clean_up=False))
    assert {decision.node_name for decision in decisions if decision.taken} == {"scores", "mix"}


def test_a_type_that_nobody_knows_is_no_float32():
    b = graphs.Builder(21)
    odd = b.op("Odd", b.input("x", [8, 8]), domain="test")
    b.output(b.op("Odd", b.op("MatMul", odd, odd, name="product"), domain="test"), [8, 8])
    b.graph.opset_imports["test"] = 1
    (decision,) = decide(b.model(10), Recipe(scheme="fp8-dynamic", clean_up=False))
    assert (decision.taken, decision.reason) == (False, "the type of what it computes on is not known")


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16])
def test_constants_tell_the_type_behind_an_operator_that_nobody_knows(dtype):
    b = graphs.Builder(21)
    odd = b.op("Odd", b.input("x", [2, 8, 8]), domain="test")
    sides = [b.op("Add", odd, b.constant(name, np.ones(8, dtype.numpy()))) for name in ("a", "b")]
    y = b.op("MatMul", sides[0], b.op("Transpose", b.op("Softmax", sides[1]), perm=[0, 2, 1]), name="product")
    b.output(b.op("Odd", y, domain="test"), [2, 8, 8])
    b.graph.opset_imports["test"] = 1
    (decision,) = (each for each in decide(b.model(10), Recipe(scheme="fp8-dynamic")) if each.node_name == "product")
    assert decision.taken is (dtype == ir.DataType.FLOAT)
    assert dtype == ir.DataType.FLOAT or decision.reason == "computes on another type than float32"
