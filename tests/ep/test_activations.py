"""What follows a product on the execution provider: the activations that it takes along, and those that it leaves."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress import ep
from products import K, Layer, M, N, check, run, taken
from sessions import options

ONE_NODE = {
    "Relu": ("Relu", "", {}),
    "Gelu": ("Gelu", "", {}),
    "Gelu none": ("Gelu", "", {"approximate": "none"}),
    "Gelu tanh": ("Gelu", "", {"approximate": "tanh"}),
    "Gelu of ONNX Runtime": ("Gelu", M, {}),
    "FastGelu": ("FastGelu", M, {}),
    "QuickGelu": ("QuickGelu", M, {"alpha": 1.0}),
}


@pytest.mark.parametrize("bias", [None, "Add", "input"])
@pytest.mark.parametrize("name", list(ONE_NODE))
def test_one_node(name, bias):
    op, domain, attributes = ONE_NODE[name]
    layer = Layer()
    y = layer.b.op(op, layer.product("product", bias), domain=domain, **attributes)
    check(layer.model(y), ["MatMulNBits", op, *(["Add"] if bias == "Add" else [])])


@pytest.mark.parametrize("bias", [None, "Add"])
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("gate", [None, "first", "second"])
def test_silu(bias, swapped, gate):
    layer = Layer()
    product = layer.product("gate_proj", bias)
    if gate == "first":
        up = layer.product("up_proj")
    y = layer.silu(product, swapped)
    expected = ["MatMulNBits", "Sigmoid", "Mul", *(["Add"] if bias else [])]
    if gate == "second":
        up = layer.product("up_proj")
    if gate:
        y = layer.b.op("Mul", *([y, up] if gate == "first" else [up, y]))
        expected += ["MatMulNBits", "Mul"]
    check(layer.model(y), expected)


@pytest.mark.parametrize("order", ["half last", "half of x", "half of sum"])
@pytest.mark.parametrize("opset", [18, 20])
def test_gelu_in_parts(order, opset):
    """ONNX Runtime may have made one node of some orders before it asks."""
    layer = Layer(opset=opset)
    model = layer.model(layer.gelu(layer.product("product", "Add"), order))
    session = ep.session(model, options())
    expected = taken(session) or []
    assert expected in ([], ["Add", "Gelu", "MatMulNBits"], ["Add", "Add", "Div", "Erf", "MatMulNBits", "Mul", "Mul"])
    check(model, expected)
    level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ep.session(model, options(graph_optimization_level=level))
    assert taken(session) in (None, ["Add", "Add", "Div", "Erf", "MatMulNBits", "Mul", "Mul"])
    np.testing.assert_array_equal(run(session, (2, 5))[0], run(ep.session(model, options()), (2, 5))[0])


@pytest.mark.parametrize("op", ["Gelu", "Relu"])
def test_other_activations_with_a_gate(op):
    layer = Layer()
    y = layer.b.op("Mul", layer.b.op(op, layer.product("gate_proj")), layer.product("up_proj"))
    check(layer.model(y), ["MatMulNBits", "MatMulNBits", op, "Mul"])


def test_a_dequantized_product():
    b = graphs.Builder(21)
    rng = np.random.default_rng(0)
    codes = b.constant("codes", rng.integers(-128, 128, (K, N)).astype(np.int8))
    weight = b.op("DequantizeLinear", codes, b.constant("scale", np.full(N, 0.01, np.float32)), axis=1)
    y = b.op("MatMul", b.input("x", ["batch", "sequence", K]), weight)
    y = b.op("Mul", b.op("Sigmoid", y), y)
    b.output(y, ["batch", "sequence", N])
    model = ir.to_proto(b.model(10)).SerializeToString()
    check(model, ["DequantizeLinear", "MatMul", "Mul", "Sigmoid"], accuracy_level=0)


def test_a_gate_of_the_same_fixed_shape():
    layer = Layer(rows=(2, 5))
    up = layer.b.input("up", [2, 5, N])
    y = layer.b.op("Mul", up, layer.silu(layer.product("gate_proj")))
    check(layer.model(y), ["MatMulNBits", "Sigmoid", "Mul", "Mul"], rows=[(2, 5)], more=["up"])


@pytest.mark.parametrize(
    ("shape", "given"),
    [
        (["batch", "other", N], (2, 5, N)),
        (["batch", "other", N], (2, 1, N)),
        (["batch", "sequence", 1], (2, 5, 1)),
        (["sequence", N], (5, N)),
        ([None, "sequence", N], (2, 5, N)),
        (None, (2, 5, N)),
    ],
)
def test_gates_of_another_shape_or_of_one_that_is_not_known_are_left(shape, given):
    layer = Layer()
    y = layer.silu(layer.product("gate_proj"))
    up = layer.b.input("up", shape or [])
    if shape is None:
        up.shape = None
    model = layer.model(layer.b.op("Mul", y, up))
    session = ep.session(model, options())
    assert taken(session) in (None, ["MatMulNBits", "Mul", "Sigmoid"])
    stock = ort.InferenceSession(model, options(), providers=["CPUExecutionProvider"])
    (got,), (want,) = (run(each, (2, 5), more=[("up", given)]) for each in (session, stock))
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(("bias", "expected"), [(None, True), ("Add", True), ("more axes", False), ("input", False)])
def test_a_gate_that_is_a_product_of_the_same_input(bias, expected):
    """Of the same shape also where sizes have no names, as behind a Reshape in real models."""
    layer = Layer(rows=(None, None))
    y, up = layer.silu(layer.product("gate_proj")), layer.product("up_proj", bias if bias == "Add" else None)
    nodes = ["MatMulNBits", "Sigmoid", "Mul", "MatMulNBits", *(["Add"] if bias == "Add" else [])]
    if bias == "more axes":
        up = layer.b.op("Add", up, layer.b.constant("added", np.ones((1, 2, 1, N), np.float32)))
    elif bias == "input":
        up = layer.b.op("Add", up, layer.b.input("added", [None, 5, N]))
    y = layer.b.op("Mul", y, up)
    layer.b.output(y, [None] * (4 if bias == "more axes" else 3))
    model = ir.to_proto(layer.b.model(10)).SerializeToString()
    session = ep.session(model, options())
    assert taken(session) in (None, sorted([*nodes, "Mul"] if expected else nodes))
    stock = ort.InferenceSession(model, options(), providers=["CPUExecutionProvider"])
    more = [("added", (2, 5, N))] if bias == "input" else []
    (got,), (want,) = (run(each, (2, 5), more=more) for each in (session, stock))
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_a_constant_gate_of_the_same_shape_is_left():
    layer = Layer(rows=(2, 5))
    up = layer.b.constant("up", np.random.default_rng(3).standard_normal((2, 5, N)).astype(np.float32))
    y = layer.b.op("Mul", layer.silu(layer.product("gate_proj")), up)
    check(layer.model(y), ["MatMulNBits", "Sigmoid", "Mul"], rows=[(2, 5)])


def test_a_gate_whose_shape_is_not_what_the_model_says():
    layer = Layer()
    up = layer.b.input("up", ["batch", "sequence", N])
    y = layer.b.op("Mul", up, layer.silu(layer.product("gate_proj")))
    session = ep.session(layer.model(y), options())
    message = r"'gate_proj': its output of shape \[2, 5, 48\] is multiplied by a tensor of shape \[1, 5, 48\]"
    with pytest.raises(Exception, match=message):
        run(session, (2, 5), more=[("up", (1, 5, N))])


def left(make):
    """A model with what `make` puts behind a product, of which the execution provider takes the product alone."""
    layer = Layer()
    outputs = make(layer, layer.product("product"))
    return layer.model(*(outputs if isinstance(outputs, tuple) else (outputs,)))


def third_reader(layer, x):
    return layer.b.op("Add", layer.silu(x), layer.b.op("Neg", x))


def product_is_an_output(layer, x):
    return layer.b.op("Relu", x), x


def sigmoid_is_an_output(layer, x):
    sigmoid = layer.b.op("Sigmoid", x)
    return layer.b.op("Mul", x, sigmoid), sigmoid


def sigmoid_has_another_reader(layer, x):
    sigmoid = layer.b.op("Sigmoid", x)
    return layer.b.op("Add", layer.b.op("Mul", x, sigmoid), layer.b.op("Neg", sigmoid))


LEFT = {
    "third reader": third_reader,
    "the product is an output": product_is_an_output,
    "the sigmoid is an output": sigmoid_is_an_output,
    "the sigmoid has another reader": sigmoid_has_another_reader,
    "sigmoid alone": lambda layer, x: layer.b.op("Sigmoid", x),
    "sigmoid of something else": lambda layer, x: layer.b.op("Mul", x, layer.b.op("Sigmoid", layer.b.op("Neg", x))),
    "QuickGelu of another alpha": lambda layer, x: layer.b.op("QuickGelu", x, domain=M, alpha=1.702),
    "QuickGelu of the default alpha": lambda layer, x: layer.b.op("QuickGelu", x, domain=M),
    "FastGelu with a bias": lambda layer, x: layer.b.op(
        "FastGelu", x, layer.b.constant("bias", np.ones(N, np.float32)), domain=M
    ),
    "another divisor": lambda layer, x: layer.gelu(x, "half last", root=1.4),
    "another sum": lambda layer, x: layer.gelu(x, "half of x", one=1.5),
    "squared": lambda layer, x: layer.b.op("Mul", x, x),
    "Tanh": lambda layer, x: layer.b.op("Tanh", x),
}


@pytest.mark.parametrize("what", list(LEFT))
def test_what_is_left(what):
    check(left(LEFT[what]), ["MatMulNBits"])


def test_float16_is_left():
    """There each node rounds."""
    layer = Layer(np.float16)
    model = layer.model(layer.silu(layer.product("product")))
    check(model, ["MatMulNBits"], dtype=np.float16, tolerance=4e-3)


@pytest.mark.parametrize("activation", ["Relu", "silu", "Gelu", "FastGelu"])
@pytest.mark.parametrize("gate", [False, True])
def test_verify(activation, gate, capfd):
    """The error that it logs is that of a float32 sum."""
    layer = Layer()
    product = layer.product("product", "Add")
    if activation == "silu":
        y = layer.silu(product)
    else:
        y = layer.b.op(activation, product, domain=M if activation == "FastGelu" else "")
    if gate:
        y = layer.b.op("Mul", y, layer.b.input("up", ["batch", "sequence", N]))
    session = ep.session(layer.model(y), options(log_severity_level=2), verify=1)
    run(session, (2, 5), more=[("up", (2, 5, N))] if gate else ())
    (line,) = (line for line in capfd.readouterr().err.splitlines() if "verify: " in line)
    words = line.split("largest error ")[1].removesuffix("\x1b[m").replace(",", "").split()
    assert 0 < float(words[0]) < 1e-5 * float(words[3])
