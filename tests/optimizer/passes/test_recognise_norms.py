"""Layer normalizations that are spelled out become one node, and only they do."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from graphs import Builder
from onnxpress.optimizer.passes.recognise_norms import RecogniseNorms
from sessions import options

SIZE = 20


def norm(
    *, square="pow", quotient="div", axes=-1, rank=3, epsilon=1e-6, opset=18, scale=(SIZE,), exponent=2.0, kept=None,
    overridable=None, other=False, turned=False,
) -> ir.Model:  # fmt: skip
    b = Builder(opset)
    x = b.input("x", ["n", "t", SIZE][3 - rank :])
    rng = np.random.default_rng(0)

    def mean(value, name):
        if opset >= 18:
            return b.op("ReduceMean", value, b.constant(f"{name}_axes", np.array([axes])), name=name)
        return b.op("ReduceMean", value, axes=[axes], name=name)

    d = b.op("Sub", x, mean(x, "mean"), name="difference")
    if square == "pow":
        squares = b.op("Pow", d, b.constant("exponent", np.array(exponent, np.float32)), name="squares")
    else:
        squares = b.op("Mul", d, d, name="squares")
    small = b.constant("epsilon", np.array(epsilon, np.float32))
    variance = mean(squares, "variance")
    root = b.op("Sqrt", b.op("Add", *((small, variance) if turned else (variance, small))), name="root")
    numerator = x if other else d
    y = b.op("Div", numerator, root) if quotient == "div" else b.op("Mul", b.op("Reciprocal", root), numerator)
    gamma = b.constant("gamma", rng.uniform(0.5, 1.5, scale).astype(np.float32))
    beta = b.constant("beta", rng.standard_normal(SIZE).astype(np.float32))
    y = b.op("Add", b.op("Mul", *((gamma, y) if turned else (y, gamma))), beta, name="shifted")
    b.output(y, ["n", "t", SIZE][3 - rank :])
    if kept:
        value = next(node for node in b.graph if node.name == kept).outputs[0]
        b.output(value, ["n", "t", None][3 - rank :])
    if overridable:
        b.graph.inputs.append(b.graph.initializers[overridable])
    return b.model()


def run(model, x, level):
    chosen = options(graph_optimization_level=level)
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), chosen).run(None, {"x": x})[0]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"square": "mul", "quotient": "reciprocal", "turned": True},
        {"opset": 17, "axes": 2},
        {"rank": 2, "axes": 1},
        {"rank": 2},
    ],
    ids=str,
)
def test_becomes_one_node(settings):
    x = np.random.default_rng(1).standard_normal((2, 5, SIZE)).astype(np.float32) * 3 + 1
    x = x[0] if settings.get("rank") == 2 else x
    model = norm(**settings)
    levels = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    want = run(model, x, levels[0])
    assert RecogniseNorms()(model)
    (node,) = model.graph
    assert (node.op_type, node.name) == ("LayerNormalization", "shifted")
    assert node.attributes.get_float("epsilon") == pytest.approx(1e-6)
    for level in levels:
        np.testing.assert_allclose(run(model, x, level), want, atol=2e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"opset": 16},
        {"axes": 1},
        {"exponent": 3.0},
        {"scale": (1, SIZE)},
        {"scale": (1,)},
        {"kept": "root"},
        {"overridable": "epsilon"},
        {"overridable": "gamma"},
        {"other": True},
        {"epsilon": -1e-6},
    ],
    ids=str,
)
def test_stays(settings):
    model = norm(**settings)
    before = [node.op_type for node in model.graph]
    assert not RecogniseNorms()(model)
    assert [node.op_type for node in model.graph] == before


def test_what_others_read_besides_stays_too():
    """The difference from the mean goes on being computed for them."""
    model = norm(kept="difference")
    assert RecogniseNorms()(model)
    assert sorted(node.op_type for node in model.graph) == ["LayerNormalization", "ReduceMean", "Sub"]
