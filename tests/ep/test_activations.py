"""What follows a product on the execution provider: the activations that it takes along, and those that it leaves."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress import ep
from sessions import KNOWS_WHO_RUNS_WHAT, options

K, N = 64, 48
M = "com.microsoft"


def taken(session):
    """Types of the nodes on the execution provider; unknown, so None, before ONNX Runtime 1.24."""
    if not KNOWS_WHO_RUNS_WHAT:
        return None
    parts = [part for part in session.get_provider_graph_assignment_info() if part.ep_name == ep.NAME]
    return sorted(node.op_type for part in parts for node in part.get_nodes())


class Layer:
    """A graph around products with random weights of 4 bits."""

    def __init__(self, dtype=np.float32, rows=("batch", "sequence"), opset=20):
        self.b = graphs.Builder(opset)
        self.b.graph.opset_imports[M] = 1
        self.dtype, self.rows = dtype, list(rows)
        self.kind = ir.DataType.from_numpy(np.dtype(dtype))
        self.x = self.b.input("x", [*rows, K], self.kind)
        self.rng = np.random.default_rng(0)

    def product(self, name, bias=None, x=None):
        codes = self.rng.integers(0, 256, (N, K // 32, 16), dtype=np.uint8)
        scales = self.rng.uniform(0.05, 0.1, codes.shape[:2]).astype(self.dtype)
        inputs = [x or self.x, self.b.constant(f"{name}.B", codes), self.b.constant(f"{name}.scales", scales)]
        values = self.rng.standard_normal(N).astype(self.dtype)
        if bias == "input":
            inputs += [None, None, self.b.constant(f"{name}.bias", values)]
        y = self.b.op("MatMulNBits", *inputs, name=name, domain=M, K=K, N=N, bits=4, block_size=32)
        return self.b.op("Add", y, self.b.constant(f"{name}.added", values)) if bias == "Add" else y

    def number(self, value):
        return self.b.constant(f"number{len(self.b.graph.initializers)}", np.array(value, self.dtype))

    def silu(self, x, swapped=False):
        factors = [x, self.b.op("Sigmoid", x)]
        return self.b.op("Mul", *(factors[::-1] if swapped else factors))

    def erf_sum(self, x, root=2**0.5, one=1.0):
        erf = self.b.op("Erf", self.b.op("Div", x, self.number(root)))
        return self.b.op("Add", erf, self.number(one))

    def gelu(self, x, order, **constants):
        total, op = self.erf_sum(x, **constants), self.b.op
        if order == "half last":
            return op("Mul", op("Mul", x, total), self.number(0.5))
        if order == "half of x":
            return op("Mul", op("Mul", self.number(0.5), x), total)
        return op("Mul", x, op("Mul", total, self.number(0.5)))

    def model(self, *outputs):
        for y in outputs:
            self.b.output(y, [*self.rows, N], self.kind)
        return ir.to_proto(self.b.model(10)).SerializeToString()


def run(session, rows, dtype=np.float32, more=()):
    x = 2 * np.random.default_rng(1).standard_normal((*rows, K)).astype(dtype)
    feeds = {"x": x, **{name: np.random.default_rng(2).standard_normal(shape).astype(dtype) for name, shape in more}}
    return session.run(None, feeds)


def check(model, expected, *, rows=((1, 1), (2, 5)), dtype=np.float32, tolerance=1e-5, more=(), **given):
    """Against stock ONNX Runtime, without its optimizations and with them."""
    session = ep.session(model, options(), **given)
    if KNOWS_WHO_RUNS_WHAT:
        assert taken(session) == sorted(expected)
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        chosen = options(graph_optimization_level=level)
        chosen.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
        stock = ort.InferenceSession(model, chosen, providers=["CPUExecutionProvider"])
        for shape in rows:
            inputs = [(name, (*shape, N)) for name in more]
            for got, want in zip(run(session, shape, dtype, inputs), run(stock, shape, dtype, inputs), strict=True):
                assert got.dtype == dtype
                np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())


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
