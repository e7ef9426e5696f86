"""Operators in PyTorch, each held against ONNX Runtime, and what is refused."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress.optimizer.errors import OnnxpressError
from onnxpress.optimizer.graph.constants import mark_constants
from rewrites import run

pytest.importorskip("torch")

from onnxpress.optimizer.gradients.graph import TorchGraph
from onnxpress.optimizer.gradients.operators import OPERATORS

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 4)).astype(np.float32)
Y = RNG.standard_normal((3, 1)).astype(np.float32)
POSITIVE = np.abs(X) + np.float32(0.5)
COUNTS = RNG.integers(-7, 8, (2, 3, 4))
OTHERS = RNG.choice([-3, -2, 2, 3], (2, 3, 4))
FLAGS, MORE_FLAGS = X > 0, RNG.random((2, 3, 4)) > 0.5
ODD = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)
TIES = np.array([[1, 3, 3, 0]], np.float32)


def ints(*values):
    return np.array(values, np.int64)


def scalar(value, dtype=np.int64):
    return np.array(value, dtype)


CASES = [
    *((name, [X], {}) for name in ("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "Identity", "Neg", "Relu", "Round",
                                   "Sigmoid", "Sign", "Sin", "Softplus", "Tanh", "HardSwish", "Mish")),
    *((name, [POSITIVE], {}) for name in ("Log", "Reciprocal", "Sqrt")),
    ("IsNaN", [ODD], {}), ("IsInf", [ODD], {}), ("IsInf", [ODD], {"detect_negative": 0}),
    *((name, [X, Y], {}) for name in ("Add", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max",
                                      "Mean", "Min", "Mul", "Sub", "Sum")),
    *((name, [COUNTS, OTHERS], {}) for name in ("Add", "Div", "Equal", "Less", "Max", "Min", "Mod", "Mul", "Sub")),
    ("Max", [X, Y, -X], {}), ("Sum", [X], {}), ("Mod", [X, Y], {"fmod": 1}), ("Mod", [COUNTS, OTHERS], {"fmod": 1}),
    *((name, [FLAGS, MORE_FLAGS], {}) for name in ("And", "Or", "Xor", "Equal")), ("Not", [FLAGS], {}),
    ("Pow", [X, scalar(2, np.float32)], {}), ("Pow", [POSITIVE, np.abs(Y)], {}), ("Pow", [X, scalar(3)], {}),
    ("Where", [FLAGS, X, Y], {}), ("Where", [FLAGS, COUNTS, scalar(0)], {}),
    ("Cast", [X * 3], {"to": ir.DataType.INT64}), ("Cast", [FLAGS], {"to": ir.DataType.FLOAT}),
    ("Cast", [X], {"to": ir.DataType.BOOL}), ("CastLike", [COUNTS, X], {}),
    ("Clip", [X, scalar(-0.5, np.float32), scalar(0.5, np.float32)], {}), ("Clip", [X, scalar(0, np.float32)], {}),
    ("Clip", [X, None, scalar(0, np.float32)], {}), ("Clip", [COUNTS, scalar(-2), scalar(2)], {}),
    ("Elu", [X], {"alpha": 0.5}), ("LeakyRelu", [X], {"alpha": 0.3}), ("HardSigmoid", [3 * X], {"alpha": 0.3}),
    ("Gelu", [X], {}), ("Gelu", [X], {"approximate": "tanh"}), ("QuickGelu", [X], {"alpha": 1.5}),
    ("MatMul", [X, RNG.standard_normal((2, 4, 5)).astype(np.float32)], {}), ("MatMul", [X, Y[:1].repeat(4)], {}),
    ("Gemm", [X[0], X[1].T.copy(), Y[0]], {"alpha": 0.5, "beta": 2.0}),
    ("Gemm", [X[0], X[1]], {"transA": 1}), ("Gemm", [X[0], X[1], X[0, :, :3].copy()], {"transB": 1}),
    ("Einsum", [X, X], {"equation": "bij,bkj->bik"}),
    *((name, [X, ints(1)], {}) for name in ("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
                                            "ReduceSum", "ReduceSumSquare")),
    ("ReduceMean", [X, ints(-1, 0)], {"keepdims": 0}), ("ReduceProd", [X, ints(0, 2)], {"keepdims": 0}),
    ("ReduceSum", [X], {}), ("ReduceSum", [X], {"noop_with_empty_axes": 1}), ("ReduceSum", [COUNTS, ints(0)], {}),
    ("ArgMax", [TIES], {"axis": 1}), ("ArgMax", [TIES], {"axis": -1, "select_last_index": 1}),
    ("ArgMin", [X], {"axis": 1, "keepdims": 0}),
    ("Softmax", [X], {}), ("Softmax", [X], {"axis": 1}), ("LogSoftmax", [X], {"axis": 0}),
    ("LayerNormalization", [X, Y[:1, 0].repeat(4), Y[1:2, 0].repeat(4)], {"epsilon": 1e-3}),
    ("LayerNormalization", [X, X[0]], {"axis": 1}),
    ("SimplifiedLayerNormalization", [X, X[0, 0]], {"epsilon": 1e-3}),
    *(("CumSum", [X, scalar(1)], {"exclusive": a, "reverse": b}) for a in (0, 1) for b in (0, 1)),
    ("Gather", [X, ints(2, -1, 0)], {"axis": 1}), ("Gather", [X, scalar(-1)], {"axis": 2}),
    ("Gather", [X, np.array([[0, 1], [1, -2]])], {}), ("GatherElements", [X, COUNTS % 4 - 4], {"axis": 2}),
    ("GatherND", [X, np.array([[0, 1], [1, -1]])], {}), ("GatherND", [X, np.array([[0, 1, 2]])], {}),
    ("ScatterND", [X, np.array([[0, 1], [1, -1]]), X[0, :2] * 3], {}),
    ("ScatterElements", [X, np.argsort(X, 2) - 4, X * 2], {"axis": 2}),
    ("Trilu", [X], {}), ("Trilu", [X, scalar(1)], {"upper": 1}), ("Trilu", [X, scalar(-1)], {"upper": 0}),
    ("TopK", [X, ints(2)], {}), ("TopK", [X, ints(2)], {"axis": 1, "largest": 0}), ("NonZero", [X * FLAGS], {}),
    ("Concat", [X, X + 1], {"axis": -2}), ("ConstantOfShape", [ints(2, 3)], {}),
    ("ConstantOfShape", [ints(2)], {"value": ir.tensor(np.array([7], np.int64))}), ("Dropout", [X], {}),
    ("Expand", [Y, ints(2, 1, 4)], {}), ("Expand", [X, ints(3, 1)], {}), ("Flatten", [X], {"axis": 2}),
    ("Flatten", [X], {"axis": -1}), ("Flatten", [X], {"axis": 0}), ("Range", [scalar(2), scalar(9), scalar(3)], {}),
    ("Range", [scalar(5), scalar(0), scalar(-2)], {}), ("Reshape", [X, ints(0, -1)], {}),
    ("Reshape", [X, ints(3, 8)], {}), ("Shape", [X], {}), ("Shape", [X], {"start": -2, "end": 2}), ("Size", [X], {}),
    ("Slice", [X, ints(1), ints(1 << 40), ints(2)], {}), ("Slice", [X, ints(-1, 0), ints(-9, 2), ints(1, 2),
                                                                  ints(-1, 1)], {}),
    ("Slice", [X, ints(3), ints(-(1 << 62)), ints(-1), ints(-2)], {}), ("Slice", [X, ints(2), ints(1), ints(2)], {}),
    ("Squeeze", [X[:1, :1]], {}), ("Squeeze", [X[:1, :, :1], ints(-1)], {}), ("Unsqueeze", [X, ints(-1, 0)], {}),
    ("Tile", [X, ints(1, 2, 3)], {}), ("Transpose", [X], {}), ("Transpose", [X], {"perm": [1, 0, 2]}),
]  # fmt: skip


def model_of(op_type, arrays, attributes, outputs=1, opset=20):
    """A node whose inputs are those of the graph."""
    b = graphs.Builder(opset)
    inputs = [
        None if each is None else b.input(f"x{index}", list(each.shape), ir.DataType.from_numpy(each.dtype))
        for index, each in enumerate(arrays)
    ]
    domain = "com.microsoft" if op_type == "QuickGelu" else ""
    found = b.op(op_type, *inputs, domain=domain, outputs=outputs, **attributes)
    b.graph.outputs.extend([found] if outputs == 1 else found)
    b.graph.opset_imports["com.microsoft"] = 1
    return b.model()


def compare(model, arrays):
    feeds = {f"x{index}": each for index, each in enumerate(arrays) if each is not None}
    wanted = run(model, feeds)
    mark_constants(model)
    found = TorchGraph(model, [value.name for value in model.graph.outputs]).run(feeds)
    assert len(found) == len(wanted)
    for here, there in zip(found, wanted, strict=True):
        assert here.numpy().dtype == there.dtype
        np.testing.assert_allclose(here.numpy(), there, rtol=2e-6, atol=2e-6, equal_nan=True)
        assert here.shape == there.shape


@pytest.mark.parametrize(("op_type", "arrays", "attributes"), CASES, ids=lambda each: each if each == str(each) else "")
def test_as_onnx_runtime(op_type, arrays, attributes):
    compare(model_of(op_type, arrays, attributes, outputs=2 if op_type == "TopK" else 1), arrays)


def test_of_newer_opsets():
    compare(model_of("RMSNormalization", [X, X[0, 0]], {"epsilon": 1e-3}, opset=23), [X, X[0, 0]])


@pytest.mark.parametrize("attributes", [{"num_outputs": 2}, {}])
def test_split(attributes):
    arrays = [X] if attributes else [X, ints(1, 3)]
    compare(model_of("Split", arrays, {"axis": 2, **attributes}, outputs=2), arrays)


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
def test_of_older_opsets(op_type):
    compare(model_of(op_type, [X], {}, opset=11), [X])
    compare(model_of("Unsqueeze", [X], {"axes": [0]}, opset=11), [X])
    compare(model_of("ReduceMean", [X], {"axes": [1]}, opset=13), [X])


def test_narrow_floats_are_computed_in_float32():
    b = graphs.Builder()
    x = b.input("x0", [2, 3, 4], ir.DataType.FLOAT16)
    zeros = b.op("ConstantOfShape", b.op("Shape", x), value=ir.tensor(np.array([0.5], np.float16)))
    y = b.op(
        "Cast", b.op("Add", b.op("Mul", x, b.constant("c", np.array(3, np.float16))), zeros), to=ir.DataType.FLOAT16
    )
    b.graph.outputs.append(y)
    model = b.model()
    mark_constants(model)
    half = X.astype(np.float16)
    (found,) = TorchGraph(model, [y.name]).run({"x0": half})
    np.testing.assert_allclose(found, half.astype(np.float32) * 3 + 0.5, rtol=1e-6)


def test_each_operator_is_tried():
    assert {name for name, _, _ in CASES} | {"Split", "RMSNormalization"} == OPERATORS.keys()


def test_unknown_operators_are_named():
    model = model_of("Atan", [X], {})
    mark_constants(model)
    with pytest.raises(OnnxpressError, match="no gradients are known of Atan"):
        TorchGraph(model, [model.graph.outputs[0].name])


def test_branches_are_refused():
    b = graphs.Builder()
    flag, x = b.input("flag", [], ir.DataType.BOOL), b.input("x", [2])
    inner = ir.Graph([], [], nodes=[ir.node("Neg", [x], name="inner")], name="branch")
    inner.outputs.append(inner[0].outputs[0])
    other = ir.Graph([], [], nodes=[ir.node("Abs", [x], name="other")], name="branch")
    other.outputs.append(other[0].outputs[0])
    b.graph.outputs.append(b.op("If", flag, then_branch=inner, else_branch=other))
    model = b.model()
    with pytest.raises(OnnxpressError, match=r"branches or loops \(If\)"):
        TorchGraph(model, [model.graph.outputs[0].name])


def test_what_an_operator_cannot_do_is_told_with_its_node():
    model = model_of("ScatterND", [X, np.array([[0]]), X[:1]], {"reduction": "add"})
    mark_constants(model)
    graph = TorchGraph(model, [model.graph.outputs[0].name])
    with pytest.raises(OnnxpressError, match=r"node 'ScatterND_0' \(ScatterND\) has no gradient here"):
        graph.run({"x0": X, "x1": np.array([[0]]), "x2": X[:1]})
