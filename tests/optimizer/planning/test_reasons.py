"""Nothing is silent: every node of a type that a scheme takes is taken, or left with a reason that is true."""

from __future__ import annotations

import graphs
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxpress.optimizer import optimize
from onnxpress.optimizer.conversion.pipeline import decide
from onnxpress.optimizer.planning.int8_operators import OPERATORS
from onnxpress.optimizer.settings.recipe import Override, Recipe
from rewrites import LEVELS, run

NOISE = np.random.default_rng(0)
WITH_WEIGHTS = {"MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN", "Einsum", "DeformConv"}
FLOAT8 = WITH_WEIGHTS | {"Gather"}
TYPES = {
    "int4": FLOAT8, "nf4": FLOAT8, "int8-dynamic": WITH_WEIGHTS, "sparse": WITH_WEIGHTS, "int8-static": OPERATORS,
    "fp8-static": FLOAT8, "fp8-dynamic": FLOAT8 | {"Add", "Mul", "LayerNormalization", "BatchNormalization"},
}  # fmt: skip


def noise(*shape):
    return NOISE.standard_normal(shape).astype(np.float32) * 0.1


def everything(opset=21) -> ir.Model:
    """Products, convolutions, tables, norms, shapes and bounds, in the main graph and in branches."""
    b = graphs.Builder(opset)
    ids, x = b.input("ids", ["n", 8], ir.DataType.INT64), b.input("x", ["n", 8, 64])
    h = b.op("Add", b.op("Gather", b.constant("table", noise(500, 64)), ids, name="small table"), x, name="sum")
    h = b.op("LayerNormalization", h, b.constant("g", noise(64)), name="norm")
    h = b.op(
        "Add",
        b.op("MatMul", h, b.constant("W", noise(64, 64)), name="product"),
        b.constant("b", noise(64)),
        name="bias",
    )
    h = b.op("Clip", b.op("Tanh", h), b.constant("low", np.float32(-1)), b.constant("high", np.float32(1)), name="clip")
    shape = b.op("Shape", x, name="shape")
    n = b.op("Gather", shape, b.constant("zero", np.array([0])), name="size")
    sizes = b.op("Concat", n, b.constant("rest", np.array([8, 8, 8])), axis=0, name="sizes")
    image = b.op(
        "Conv", b.op("Reshape", h, sizes, name="image"), b.constant("K", noise(8, 8, 3, 3)), name="conv", pads=[1] * 4
    )
    widened = b.op("Expand", b.constant("one", noise(1, 8, 1, 1)), sizes, name="widened")
    image = b.op("Mul", b.op("Add", image, widened, name="shifted"), b.constant("half", np.float32(0.5)), name="halved")
    picked = b.op("Gather", image, b.constant("first", np.array(0)), axis=1, name="activations")
    branches = []
    for name in ("then", "else"):
        inner = graphs.Builder(opset)
        y = inner.op(
            "Gemm",
            inner.op("Flatten", picked, name=f"flat {name}"),
            inner.constant(f"V {name}", noise(64, 32)),
            name=f"gemm {name}",
        )
        y = inner.op("Add", y, inner.op("Relu", y, name=f"relu {name}"), name=f"sum {name}")
        inner.output(y, [None, 32])
        branches.append(inner.graph)
    y = b.op("If", b.input("c", [], ir.DataType.BOOL), name="if", then_branch=branches[0], else_branch=branches[1])
    b.output(y, ["n", 32])
    return b.model()


FEEDS = {"x": noise(2, 8, 64), "ids": NOISE.integers(0, 500, (2, 8)), "c": np.array(True)}


@pytest.mark.parametrize("scheme", TYPES)
def test_every_node_has_a_decision(scheme):
    extended = {"coverage": "extended"} if scheme == "fp8-dynamic" else {}
    decisions = {d.node.name: d for d in decide(everything(), Recipe(scheme=scheme, clean_up=False, **extended))}
    types = TYPES[scheme]
    names = {node.name for node in everything().graph.all_nodes() if node.op_type in types}
    vanish = {"bias", "flat then", "flat else"} if scheme == "int8-static" else set()  # parts of a Gemm by now
    assert names - vanish <= decisions.keys()
    assert all(bool(d.scheme) == d.taken != bool(d.reason) for d in decisions.values())


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        ("int4", "table of fewer than 1,048,576 numbers"),
        ("int8-dynamic", "table of fewer than 1,048,576 numbers"),
        ("sparse", "table of fewer than 1,048,576 numbers"),
        ("int8-static", "a constant table, which stays as it is"),
        ("fp8-dynamic", "table of fewer than 1,048,576 numbers"),
    ],
)
def test_a_table_that_stays_is_told(scheme, reason):
    decisions = {d.node.name: d.reason for d in decide(everything(), Recipe(scheme=scheme))}
    assert decisions["small table"] == reason


@pytest.mark.parametrize("scheme", TYPES)
@pytest.mark.parametrize("kept", ["exclude", "override"])
def test_what_the_recipe_keeps_in_float_is_told_as_that(scheme, kept):
    """Whatever else there is against a node: too few weights, no form of its operator, or where it is."""
    given = {"exclude": ("*",)} if kept == "exclude" else {"overrides": (Override(match="*", keep_float=True),)}
    model = everything()
    model.graph.opset_imports["com.microsoft"] = 1
    product = next(node for node in model.graph if node.name == "product")
    foreign = ir.node("FusedMatMul", list(product.inputs), domain="com.microsoft", name="foreign")
    model.graph.insert_after(product, foreign)
    foreign.outputs[0].name, foreign.outputs[0].type = "foreign", ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(foreign.outputs[0])
    decisions = decide(model, Recipe(scheme=scheme, clean_up=False, **given))
    assert {"conv", "small table", "gemm then", "foreign"} <= {d.node.name for d in decisions}
    words = {"exclude": "excluded by the recipe", "override": "kept in float by an override of the recipe"}
    assert {d.reason for d in decisions} == {words[kept]}
    assert {type(f"{d.reason}") for d in decisions} == {str}
    some = decide(everything(), Recipe(scheme=scheme, clean_up=False, include=("product",)))
    assert {d.reason for d in some if d.node.name == "conv"} != {words["exclude"]}


@pytest.mark.parametrize("scheme", ["int8-dynamic", "sparse"])
def test_a_large_table_stays_in_schemes_that_take_products_alone(scheme):
    b = graphs.Builder()
    table = b.constant("table", np.zeros((1 << 14, 64), np.float32))
    h = b.op("Gather", table, b.input("ids", ["n"], ir.DataType.INT64), name="rows")
    b.output(b.op("MatMul", h, b.constant("W", graphs.weight(64, 64))), ["n", 64])
    reasons = {d.node.name: d.reason for d in decide(b.model(), Recipe(scheme=scheme)) if not d.taken}
    assert "not take embedding tables" in reasons["rows"]


@pytest.mark.parametrize("scheme", TYPES)
def test_what_is_within_a_function_is_told(scheme):
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21, "own": 1]>
        main (float[n, 64] x) => (float[n, 64] y) <float[64, 64] W = {1}> { y = own.layer(x) }
        <domain: "own", opset_import: ["": 21]> layer (x) => (y) {
            s = Constant <value_ints = [64, 64]> ()
            W = ConstantOfShape <value = float[1] {0.1}> (s)
            [inside] y = MatMul (x, W)
        }""".replace("<float[64, 64] W = {1}>", "")
    )
    decisions = decide(ir.from_proto(model), Recipe(scheme=scheme, clean_up=False))
    reasons = {d.node_name: d.reason for d in decisions}
    assert reasons["layer/inside"] == "inside function layer; clean-up inlines functions"


def test_a_bound_that_an_int8_operator_takes_over_is_not_left():
    b = graphs.Builder(17)
    x = b.input("x", ["n", 64])
    y = b.op("Relu", b.op("MatMul", x, b.constant("W", noise(64, 64)), name="product"), name="over")
    b.output(
        b.op("Relu", b.op("Tanh", b.op("MatMul", y, b.constant("V", noise(64, 64)), name="second")), name="stays"),
        ["n", 64],
    )
    left = {
        d.node.name: d.reason for d in decide(b.model(), Recipe(scheme="int8-static", clean_up=False)) if not d.taken
    }
    assert left == {"stays": "no int8 operator feeds it alone"}


@pytest.mark.parametrize("clean_up", [True, False])
@pytest.mark.parametrize("weights", ["e4m3fn", "e3m4"])
def test_fp8_dynamic_takes_products_of_branches(weights, clean_up, tmp_path):
    """Their weights may be those of products around them, and what they read, too."""
    b = graphs.Builder(21)
    x, W = b.op("Tanh", b.input("x", ["n", 64])), b.constant("W", noise(64, 64))
    branches = []
    for name, op_type in (("then", "MatMul"), ("else", "Gemm")):
        inner = graphs.Builder(21)
        y = inner.op(op_type, x, W, name=name)
        inner.output(
            inner.op("MatMul", y, inner.constant(f"V{name}", noise(64, 64)), name=f"second {name}"), [None, 64]
        )
        branches.append(inner.graph)
    y = b.op("If", b.input("c", [], ir.DataType.BOOL), name="if", then_branch=branches[0], else_branch=branches[1])
    b.output(b.op("MatMul", y, W, name="last"), ["n", 64])
    model = b.model()
    feeds = [{"x": noise(5, 64), "c": np.array(taken)} for taken in (True, False)]
    wanted = [run(model, each)[0] for each in feeds]
    recipe = Recipe(scheme="fp8-dynamic", weight_format=weights, activation_format="e3m4", clean_up=clean_up)
    report = optimize(model, recipe, tmp_path / "out.onnx")
    assert (report.rewritten, report.left) == ({"MatMul": 4, "Gemm": 1}, {})
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"), full_check=True)
    for level in LEVELS:
        for each, want in zip(feeds, wanted, strict=True):
            (got,) = run((tmp_path / "out.onnx").read_bytes(), each, level)
            assert np.abs(got - want).max() < 0.1 * np.abs(want).max()


def test_fp8_dynamic_takes_products_of_loops(tmp_path):
    b, body = graphs.Builder(21), graphs.Builder(21)
    x, W = b.input("x", ["n", 64]), b.constant("W", noise(64, 64))
    body.input("i", [], ir.DataType.INT64)
    going, state = body.input("going", [], ir.DataType.BOOL), body.input("state", [None, 64])
    y = body.op(
        "Add", body.op("MatMul", state, W, name="product"), body.op("MatMul", x, W, name="of outside"), name="sum"
    )
    body.output(body.op("Identity", going, name="on"), [], ir.DataType.BOOL)
    body.output(y, [None, 64])
    b.output(b.op("Loop", b.constant("three", np.array(3)), None, x, name="loop", body=body.graph), ["n", 64])
    model, feeds = b.model(), {"x": noise(5, 64)}
    (want,) = run(model, feeds)
    report = optimize(model, Recipe(scheme="fp8-dynamic"), tmp_path / "out.onnx")
    assert report.rewritten == {"MatMul": 2}
    for level in LEVELS:
        (got,) = run((tmp_path / "out.onnx").read_bytes(), feeds, level)
        assert np.abs(got - want).max() < 0.15 * np.abs(want).max()


def test_sparse_tells_why_it_leaves_branches():
    reasons = {d.node.name: d.reason for d in decide(everything(), Recipe(scheme="sparse", clean_up=False))}
    assert reasons["gemm then"] == "inside a graph of a node; scheme sparse takes products of the main graph"
