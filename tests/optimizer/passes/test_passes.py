"""What the passes rewrite, what they leave and why, and that ONNX Runtime computes the same from what they emit."""

from __future__ import annotations

import graphs
import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import rewrites
from onnxpress.custom_ops import _kernels, reference
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.errors import OnnxpressError
from onnxpress.optimizer.model_io import storage
from onnxpress.optimizer.planning.plan import plan
from onnxpress.optimizer.quantization.schemes import SCHEMES
from onnxpress.optimizer.runtime.session import open_session, session_options
from onnxpress.optimizer.settings.recipe import Override
from sessions import RUNS_TWO_BITS

RNG = np.random.default_rng(7)
INTEGERS = [name for name, preset in SCHEMES.items() if preset.integer and name == preset.format]


def run(model, feeds, ours=False, level=None):
    path = model if isinstance(model, str) else None
    # ONNX Runtime turns DequantizeLinear + MatMul into MatMulNBits, by default with activations rounded to int8.
    options = session_options(ours=ours, config={"session.qdq_matmulnbits_accuracy_level": "0"})
    if level is not None:
        options.graph_optimization_level = level
    source = path or (model if isinstance(model, bytes) else ir.to_proto(model).SerializeToString())
    return open_session(source, options).run(None, feeds)


def rounded(W, recipe, transposed=False):
    """The weight that a recipe makes of W, as [K, N]."""
    scheme = recipe.settings("", "MatMul").weight
    N, K = W.shape if transposed else W.shape[::-1]
    blocks = -(-K // scheme.block_size)
    packed = np.zeros((N, blocks, scheme.block_size * scheme.bits // 8), np.uint8)
    scales, zeros = np.zeros((N, blocks), np.float32), np.zeros((N, blocks), np.uint8)
    _kernels.quantize_blocks(
        W, transposed, scheme.bits, scheme.block_size, scheme.symmetric, scheme.search, scheme.scale_type, (0, N),
        packed, scales, zeros,
    )  # fmt: skip
    zero_points = _kernels.pack_zero_points(zeros, scheme.bits)
    return reference.dequantize(packed, scales, zero_points, bits=scheme.bits, block_size=scheme.block_size, K=K)


def emitted(model, recipe, tmp_path):
    """The path of what `rewrites.emitted` checks, and the report."""
    _, report = rewrites.emitted(model, recipe, tmp_path)
    return report.output, report


def node_types(path):
    return [f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in onnx.load(path).graph.node]


@pytest.mark.parametrize("form", ["qoperator", "qdq", "onnxpress"])
@pytest.mark.parametrize("scheme", INTEGERS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_form_computes_the_rounded_weight(form, scheme, symmetric, tmp_path):
    """Through full optimization, with and without our library, at sizes that divide into nothing."""
    if (scheme, form) == ("int2", "qoperator") and not RUNS_TWO_BITS:
        pytest.skip("MatMulNBits of ONNX Runtime 1.23 has 4 and 8 bits")
    for K, N, block_size, scale_type in [(64, 48, 32, "float32"), (100, 37, 16, "float16"), (130, 20, 128, "float32")]:
        recipe = Recipe(
            scheme=scheme,
            form=form,
            symmetric=symmetric,
            block_size=block_size,
            scale_type=scale_type,
            accuracy_level=0,
        )
        path, report = emitted(graphs.matmul_model(K, N), recipe, tmp_path)
        W = graphs.weight(K, N)
        x = RNG.standard_normal((5, K)).astype(np.float32)
        want = x @ rounded(W, recipe)
        for ours in (False, True):
            for level in (ort.GraphOptimizationLevel.ORT_ENABLE_ALL, ort.GraphOptimizationLevel.ORT_DISABLE_ALL):
                (got,) = run(path, {"x": x}, ours, level)
                np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max(), err_msg=f"{K} {ours} {level}")
        assert report.rewritten == {"MatMul": 1}
        if form == "qdq":
            assert onnx.load(path).opset_import[0].version == 21
            assert "DequantizeLinear" in node_types(path)
        else:
            domain = "com.microsoft" if form == "qoperator" and scheme in ("int2", "int4", "int8") else "onnxpress"
            assert f"{domain}::MatMulNBits" in node_types(path)


@pytest.mark.parametrize("form", ["qoperator", "onnxpress"])
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("c", ["none", "vector", "row", "scalar", "matrix", "input"])
def test_gemm(form, transposed, c, tmp_path):
    """Alpha and beta, both transposes, and every kind of C."""
    K, N, M = 64, 40, 6
    b = graphs.Builder()
    x = b.input("x", [K, M])
    W = graphs.weight(K, N)
    inputs = [x, b.constant("W", np.ascontiguousarray(W.T) if transposed else W)]
    C = {"none": None, "vector": (N,), "row": (1, N), "scalar": (), "matrix": (M, N), "input": (N,)}[c]
    feeds = {"x": RNG.standard_normal((K, M)).astype(np.float32)}
    value = 0.0
    if C is not None:
        value = RNG.standard_normal(C).astype(np.float32)
        inputs.append(b.input("c", list(C)) if c == "input" else b.constant("C", value))
        if c == "input":
            feeds["c"] = value
    y = b.op("Gemm", *inputs, name="gemm", alpha=0.5, beta=2.0, transA=1, transB=transposed)
    b.output(y, [M, N])
    recipe = Recipe(form=form, accuracy_level=0, clean_up=False)
    path, report = emitted(b.model(), recipe, tmp_path)
    (got,) = run(path, feeds, ours=True)
    want = 0.5 * feeds["x"].T @ rounded(W, recipe) + 2 * value
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())
    assert report.rewritten == {"Gemm": 1}
    assert ("Add" in node_types(path)) == (c in ("matrix", "input"))


@pytest.mark.parametrize("form", ["qoperator", "qdq", "onnxpress"])
def test_gemm_in_every_form_with_transposed_weight(form, tmp_path):
    b = graphs.Builder()
    W = graphs.weight(64, 40)
    y = b.op(
        "Gemm", b.input("x", ["m", 64]), b.constant("W", np.ascontiguousarray(W.T)), name="gemm", transB=1, alpha=3.0
    )
    b.output(y, ["m", 40])
    recipe = Recipe(form=form, accuracy_level=0)
    path, _ = emitted(b.model(), recipe, tmp_path)
    x = RNG.standard_normal((3, 64)).astype(np.float32)
    want = 3 * x @ rounded(W, recipe)
    np.testing.assert_allclose(run(path, {"x": x}, True)[0], want, atol=2e-5 * np.abs(want).max())


def test_bias_moves_into_the_node(tmp_path):
    path, _ = emitted(graphs.matmul_model(bias=True), Recipe(), tmp_path)
    assert node_types(path) == ["com.microsoft::MatMulNBits"]
    node = onnx.load(path).graph.node[0]
    assert node.name == "product"
    assert list(node.output) == ["sum_out"]
    assert len(node.input) == 6


def test_bias_stays_where_the_product_is_read_elsewhere(tmp_path):
    b = graphs.Builder()
    product = b.op("MatMul", b.input("x", ["m", 64]), b.constant("W", graphs.weight(64, 32)), name="product")
    b.output(b.op("Add", product, b.constant("b", np.ones(32, np.float32)), name="sum"), ["m", 32])
    b.output(b.op("Relu", product, name="relu"), ["m", 32])
    path, _ = emitted(b.model(), Recipe(), tmp_path)
    assert sorted(node_types(path)) == ["Add", "Relu", "com.microsoft::MatMulNBits"]


@pytest.mark.parametrize("form", ["qoperator", "qdq", "onnxpress"])
def test_float16(form, tmp_path):
    """Float16 activations, bias and scales, through ONNX Runtime."""
    model = graphs.matmul_model(96, 32, bias=True, dtype=np.float16)
    recipe = Recipe(form=form, accuracy_level=0)
    path, _ = emitted(model, recipe, tmp_path)
    x = RNG.standard_normal((4, 96)).astype(np.float16)
    half = Recipe(form=form, accuracy_level=0, scale_type="float32" if form == "onnxpress" else "float16")
    want = x.astype(np.float32) @ rounded(graphs.weight(96, 32, dtype=np.float16), half)
    want += graphs.weight(1, 32, 1, np.float16)[0]
    (got,) = run(path, {"x": x}, ours=True)
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, want, atol=4e-3 * np.abs(want).max())


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_weight_behind_views_and_casts(dtype, tmp_path):
    b = graphs.Builder()
    stored = graphs.weight(40, 64).astype(dtype)
    value = b.op("Identity", b.constant("W", stored))
    value = b.op("Transpose", b.op("Cast", value, to=int(ir.DataType.FLOAT)), perm=[1, 0])
    b.output(b.op("MatMul", b.input("x", ["m", 64]), value, name="product"), ["m", 40])
    recipe = Recipe(accuracy_level=0, clean_up=False)
    path, _ = emitted(b.model(), recipe, tmp_path)
    assert node_types(path) == ["com.microsoft::MatMulNBits"]
    x = RNG.standard_normal((3, 64)).astype(np.float32)
    want = x @ rounded(stored.astype(np.float32), recipe, transposed=True)
    np.testing.assert_allclose(run(path, {"x": x})[0], want, atol=2e-5 * np.abs(want).max())


def test_shared_weight_is_rounded_once_and_stays_for_others(tmp_path):
    """Tied embeddings: one table read by Gather, and transposed by MatMul."""
    b = graphs.Builder()
    table = b.constant("table", graphs.weight(64, 32))
    x = b.op("Gather", table, b.input("ids", ["m"], ir.DataType.INT64), name="embed")
    x = b.op("MatMul", x, b.constant("W", graphs.weight(32, 32)), name="first")
    b.output(b.op("MatMul", x, b.op("Transpose", table, perm=[1, 0]), name="head"), ["m", 64])
    b.output(b.op("MatMul", x, b.op("Transpose", table, perm=[1, 0]), name="again"), ["m", 64])
    path, report = emitted(b.model(), Recipe(clean_up=False), tmp_path)
    assert report.rewritten == {"MatMul": 3}
    assert [w.name for w in report.weights] == ["W", "table"]
    assert any("table also stays in float" in warning for warning in report.warnings)
    names = [tensor.name for tensor in onnx.load(path).graph.initializer]
    assert sum(name.startswith("table_int4_codes") for name in names) == 1
    assert "table" in names
    assert "W" not in names


@pytest.mark.parametrize("form", ["qoperator", "qdq", "onnxpress"])
def test_subgraphs(form, tmp_path):
    """A weight of the outer graph and one of the branch, both read inside an If."""
    b = graphs.Builder()
    x = b.input("x", ["m", 64])
    condition = b.input("condition", [], ir.DataType.BOOL)
    outer = b.constant("outer", graphs.weight(64, 32))

    def branch(name, value):
        inner = graphs.Builder()
        source = value if isinstance(value, ir.Value) else inner.constant(f"{name}_W", value)
        inner.output(inner.op("MatMul", x, source, name=name), ["m", 32])
        inner.graph.opset_imports.clear()
        return inner.graph

    y = b.op(
        "If", condition, name="if",
        then_branch=branch("then", outer), else_branch=branch("else", graphs.weight(64, 32, 1)),
    )  # fmt: skip
    b.output(y, ["m", 32])
    recipe = Recipe(form=form, accuracy_level=0, clean_up=False)
    path, report = emitted(b.model(), recipe, tmp_path)
    assert report.rewritten == {"MatMul": 2}
    feeds = {"x": RNG.standard_normal((3, 64)).astype(np.float32)}
    for value, seed in ((True, 0), (False, 1)):
        want = feeds["x"] @ rounded(graphs.weight(64, 32, seed), recipe)
        for ours in (False, True):
            (got,) = run(path, {**feeds, "condition": np.array(value)}, ours)
            np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


def reasons(model, recipe=None):
    return {d.node.name: d.reason for d in plan(model, recipe or Recipe()) if not d.taken}


def test_reasons_for_leaving():
    b = graphs.Builder()
    x = b.input("x", [2, 64, 64])
    W = graphs.weight(64, 64)
    poisoned = W.copy()
    poisoned[3, 4] = np.nan
    overridable = b.constant("overridable", W)
    b.graph.inputs.append(overridable)
    cases = {
        "batched": b.constant("batched_W", np.stack([W, W])),
        "poisoned": b.constant("poisoned_W", poisoned),
        "overridable": overridable,
        "double": b.constant("double_W", W.astype(np.float64)),
        "vector": b.constant("vector_W", W[0]),
        "small": b.constant("small_W", W[:, :4]),
        "empty": b.constant("empty_W", W[:, :0]),
        "computed": b.op("Relu", x, name="relu"),
    }
    for name, value in cases.items():
        b.op("MatMul", x, value, name=name)
    b.op("MatMul", b.constant("left_W", W), x, name="left")
    b.op("Conv", x, b.constant("kernel", np.ones((8, 64, 3), np.float32)), name="conv")
    b.op("MatMul", x, b.constant("good_W", W), name="good")
    assert reasons(b.model()) == {
        "batched": "batched weight of 3 axes",
        "poisoned": "the weight holds NaN or infinity",
        "overridable": "the weight is also a graph input, which a caller may override",
        "double": "weight of type DOUBLE",
        "vector": "weight of one axis",
        "small": "fewer than 1024 weights",
        "empty": "empty weight",
        "computed": "no constant weight",
        "left": "the constant is on the left",
        "conv": "weight-only schemes of integers do not take Conv (int8-static does)",
    }
    assert reasons(b.model(), Recipe(include=("good", "left")))["left"] == "the constant is on the left"
    assert reasons(b.model(), Recipe(exclude=("g*",)))["good"] == "excluded by the recipe"
    assert reasons(b.model(), Recipe(include=("nothing",)))["good"] == "not included by the recipe"
    kept = Recipe(overrides=(Override(match="good", keep_float=True),))
    assert reasons(b.model(), kept)["good"] == "kept in float by an override of the recipe"


def test_function_bodies_are_left_unless_inlined(tmp_path):
    text = """
    <ir_version: 9, opset_import: ["" : 18, "local" : 1]>
    g (float[m, 64] x) => (float[m, 64] y) { w = Constant <value = float[64, 64] {VALUES}> () y = local.f (x, w) }
    <domain: "local", opset_import: ["" : 18]>
    f (a, b) => (c) { c = MatMul (a, b) }
    """
    proto = onnx.parser.parse_model(text.replace("VALUES", ", ".join("0.5" for _ in range(64 * 64))))
    decisions = plan(ir.from_proto(proto), Recipe())
    assert [d.reason for d in decisions] == ["inside function f; clean-up inlines functions"]
    _, report = emitted(ir.from_proto(proto), Recipe(), tmp_path)
    assert report.rewritten == {"MatMul": 1}


@pytest.mark.parametrize("scheme", ["int4", "int8"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("dtype", "scale_type", "written"),
    [
        (np.float32, "float32", "float32"),
        (np.float32, None, "half"),
        (np.float32, "float16", "half"),
        (np.float16, "half", "float16"),
    ],
)
def test_embeddings(scheme, symmetric, dtype, scale_type, written, tmp_path):
    b = graphs.Builder()
    table = graphs.weight(16400, 64, dtype=dtype)
    x = b.op("Gather", b.constant("table", table), b.input("ids", ["m"], ir.DataType.INT64), name="embed")
    b.output(x, ["m", 64], ir.DataType.from_numpy(np.dtype(dtype)))
    with pytest.raises(OnnxpressError, match="embeddings takes it"):
        optimize(b.model(), Recipe(scheme=scheme), tmp_path / "no.onnx")
    recipe = Recipe(scheme=scheme, embeddings=True, symmetric=symmetric, scale_type=scale_type)
    target = tmp_path / "out.onnx"
    assert optimize(b.model(), recipe, target).rewritten == {"Gather": 1}
    ids = np.array([0, 5, 16399, 5])
    want = rounded(table, recipe.decided(scale_type=written), transposed=True).T[ids]
    (got,) = run(str(target), {"ids": ids})
    np.testing.assert_allclose(got, want, atol=1e-6 if dtype == np.float32 else 2e-3)


def test_tied_embeddings_share_their_bytes(tmp_path):
    """The table of Gather and the transposed head have the same codes, stored once in external data."""
    b = graphs.Builder()
    table = b.constant("table", graphs.weight(16400, 64))
    x = b.op("Gather", table, b.input("ids", ["m"], ir.DataType.INT64), name="embed")
    b.output(b.op("MatMul", x, b.op("Transpose", table, perm=[1, 0]), name="head"), ["m", 16400])
    source = tmp_path / "in.onnx"
    ir.save(b.model(), source, external_data="in.data")
    report = optimize(source, Recipe(embeddings=True), tmp_path / "out.onnx")
    assert report.rewritten == {"Gather": 1, "MatMul": 1}
    (data,) = tmp_path.glob("out.onnx.*.data")
    assert data.stat().st_size < 1.3 * 16400 * 64 * (4.375 / 8 + 1 / 8)


@pytest.mark.parametrize("opset", [9, 12, 17])
@pytest.mark.parametrize("form", ["qoperator", "qdq", "onnxpress"])
def test_old_opsets(opset, form, tmp_path):
    recipe = Recipe(form=form, accuracy_level=0)
    path, _ = emitted(graphs.matmul_model(opset=opset), recipe, tmp_path)
    x = RNG.standard_normal((3, 64)).astype(np.float32)
    want = x @ rounded(graphs.weight(64, 48), recipe)
    np.testing.assert_allclose(run(path, {"x": x}, True)[0], want, atol=2e-5 * np.abs(want).max())
    version = {entry.domain: entry.version for entry in onnx.load(path).opset_import}[""]
    assert version == (21 if form == "qdq" else max(opset, 13) if form == "onnxpress" else opset)


def test_shapes_are_inferred_without_our_library(tmp_path):
    path, _ = emitted(graphs.matmul_model(), Recipe(scheme="int3"), tmp_path)
    proto = onnx.load(path)
    proto.graph.output[0].type.tensor_type.shape.dim[1].Clear()
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    assert inferred.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 48


def test_overrides_change_one_node(tmp_path):
    b = graphs.Builder()
    x = b.input("x", ["m", 64])
    for name in ("first", "second"):
        x = b.op("MatMul", x, b.constant(f"{name}_W", graphs.weight(64, 64)), name=name)
    b.output(x, ["m", 64])
    recipe = Recipe(overrides=(Override(match="sec*", scheme="int8", block_size=64), Override(match="nobody")))
    path, report = emitted(b.model(), recipe, tmp_path)
    bits = [
        {a.name: a.i for a in n.attribute}["bits"] for n in onnx.load(path).graph.node if n.op_type == "MatMulNBits"
    ]
    assert bits == [4, 8]
    assert report.warnings == ('override (match = "nobody") matches no node with a weight',)


def test_recipe_is_stored_in_the_model(tmp_path):
    import json

    path, report = emitted(graphs.matmul_model(), Recipe(block_size=16), tmp_path)
    stored = storage.load(path).metadata_props["onnxpress.recipe"]
    assert Recipe.from_mapping(json.loads(stored)) == Recipe(block_size=16)
    assert report.recipe["block_size"] == 16


def test_quantizing_twice_is_refused(tmp_path):
    path, _ = emitted(graphs.matmul_model(), Recipe(), tmp_path)
    with pytest.raises(OnnxpressError, match="already quantized"):
        optimize(path, Recipe(), tmp_path / "twice.onnx")
    assert not (tmp_path / "twice.onnx").exists()


@pytest.mark.parametrize("first", ["int5", "sparse"])
def test_what_has_nodes_of_our_own_is_not_taken_apart_to_be_quantized_again(first, tmp_path):
    path, _ = emitted(graphs.matmul_model(), Recipe(scheme=first), tmp_path)
    with pytest.raises(OnnxpressError, match="already quantized"):
        optimize(path, Recipe(), tmp_path / "twice.onnx")
