"""Types of tensors that a model does not state, where clean-up does not find them."""

from __future__ import annotations

import graphs
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.conversion.infer_types import infer_types
from onnxpress.optimizer.conversion.pipeline import decide, optimize
from onnxpress.optimizer.errors import OnnxpressError
from onnxpress.optimizer.model_io import storage
from onnxpress.optimizer.passes.expand_hard_activations import ExpandHardActivations
from onnxpress.optimizer.passes.preparation import prepare
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


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("kind", ["HardSwish", "HardSigmoid"])
def test_results_of_loops_have_a_type_when_activations_are_expanded(dtype, kind):
    """Nobody stated it, and float16 met constants of float32."""
    state = "float" if dtype == np.float32 else "float16"
    proto = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
g ({state}[4, 64] x) => ({state}[4, 64] y) <int64 n = {{2}}, bool c = {{1}}> {{
    h = Loop(n, c, x) <body = b (int64 i, bool go, {state}[4, 64] s) => (bool on, t) {{
        t = Tanh(s)
        on = Identity(go)
    }}>
    a = {kind}(h)
    y = MatMul(a, W)
}}""")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(graphs.weight(64, 64, dtype=dtype), "W"))
    feeds = {"x": np.random.default_rng(0).standard_normal((4, 64)).astype(dtype)}
    model = storage.of_proto(proto)
    infer_types(model)
    prepare(model)
    assert (kind in {node.op_type for node in model.graph}) is (dtype == np.float16)
    wanted, found = (
        ort.InferenceSession(each.SerializeToString()).run(None, feeds)[0] for each in (proto, ir.to_proto(model))
    )
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3)


def test_what_nobody_knows_the_type_of_is_not_expanded():
    b = graphs.Builder(17)
    odd = b.op("Odd", b.input("x", [4]), domain="test")
    b.output(b.op("Odd", b.op("HardSigmoid", odd), domain="test"), [4])
    assert not ExpandHardActivations()(b.model())
