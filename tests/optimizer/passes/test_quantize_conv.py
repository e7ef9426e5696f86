"""Convolutions that read weights of small floats: what is rewritten, what is left and why, and what comes out."""

from __future__ import annotations

import graphs
import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress.custom_ops import functions, reference
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.analysis.compare import compare
from onnxpress.optimizer.analysis.inspect import inspect
from onnxpress.optimizer.errors import OnnxpressError
from onnxpress.optimizer.passes.declare_functions import declare_functions
from onnxpress.optimizer.passes.decode_minifloat import decode_minifloat
from onnxpress.optimizer.planning.plan import plan
from onnxpress.optimizer.quantization.formats import FORMATS
from onnxpress.optimizer.quantization.rtn import quantize_rtn
from onnxpress.optimizer.quantization.schemes import SCHEMES
from onnxpress.optimizer.runtime.session import open_session, session_options
from onnxpress.optimizer.settings.recipe import Override
from rewrites import emitted

RNG = np.random.default_rng(31)
MINIFLOATS = [name for name, preset in SCHEMES.items() if not preset.integer and preset.family == "weight-only"]
LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
SHAPES = {
    "plain": ("Conv", (40, 12, 3, 3), 1),
    "groups": ("Conv", (48, 6, 3, 2), 4),
    "depthwise": ("Conv", (120, 1, 3, 3), 120),
    "pointwise": ("Conv", (30, 70, 1, 1), 1),
    "line": ("Conv", (24, 20, 3), 1),
    "transpose": ("ConvTranspose", (12, 24, 2, 2), 1),
    "transpose groups": ("ConvTranspose", (40, 13, 2, 2), 4),
}


def kernel(shape, seed=0, dtype=np.float32):
    return graphs.weight(shape[0], int(np.prod(shape[1:])), seed, dtype).reshape(shape)


def model_of(kind, dtype=np.float32, opset=18):
    op_type, shape, groups = SHAPES[kind]
    channels = shape[1] * groups if op_type == "Conv" else shape[0]
    b = graphs.Builder(opset)
    x = b.input("x", [1, channels, *[9] * (len(shape) - 2)], ir.DataType.from_numpy(np.dtype(dtype)))
    b.output(
        b.op(op_type, x, b.constant("W", kernel(shape, dtype=dtype)), name="conv", group=groups),
        [None] * len(shape), ir.DataType.from_numpy(np.dtype(dtype)),
    )  # fmt: skip
    return b.model()


def rounded(W, recipe, op_type="Conv"):
    """What a recipe makes of the rows of W; blocks that hold a whole row are one of its length."""
    scheme = recipe.settings("conv", "Conv").weight
    rows = W.reshape(len(W), -1)
    block_size = 0 if scheme.block_size >= rows.shape[1] else scheme.block_size
    quantized = quantize_rtn(np.ascontiguousarray(rows), scheme, True, convolution=op_type == "Conv")
    form = {"format": scheme.format, "block_size": scheme.block_size, "shape": W.shape}
    weight = reference.dequantize_minifloat_tensor(quantized.packed, quantized.scales, **form)
    return weight, quantized.scales, block_size


def feed(proto):
    dims = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(proto.graph.input[0].type.tensor_type.elem_type)
    return {"x": RNG.standard_normal(dims).astype(dtype)}


def with_weight(proto, W):
    """The float model with another weight."""
    (tensor,) = proto.graph.initializer
    tensor.CopyFrom(onnx.numpy_helper.from_array(W, tensor.name))
    return proto.SerializeToString()


def check_runs(proto, plain, W, tolerance=0.0):
    """What the float model computes of the rounded weight, with all optimizations and with none.

    To the bit where the weight is a constant; ONNX Runtime has kernels with other sums for one that is not.
    """
    x = feed(proto)
    for level in LEVELS:
        for ours in (False, True):
            made = session_options(ours=ours)
            made.graph_optimization_level = level
            want = open_session(with_weight(plain, W), made).run(None, x)[0]
            got = open_session(proto.SerializeToString(), made).run(None, x)[0]
            np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize("scheme", MINIFLOATS)
@pytest.mark.parametrize("kind", SHAPES)
def test_every_scheme_and_kind(kind, scheme, tmp_path):
    recipe, shape = Recipe(scheme=scheme), SHAPES[kind][1]
    proto, report = emitted(model_of(kind), recipe, tmp_path)
    W, _, block_size = rounded(kernel(shape), recipe, SHAPES[kind][0])
    assert report.rewritten == {SHAPES[kind][0]: 1}
    assert report.schemes == {scheme: 1}
    node = next(each for each in proto.graph.node if each.op_type == "DequantizeMiniFloat")
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert given == {"format": SCHEMES[scheme].format.encode(), "shape": list(shape), "block_size": block_size}
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    codes, stored = (arrays[name] for name in node.input)
    given["format"] = given["format"].decode()
    np.testing.assert_array_equal(reference.dequantize_minifloat_tensor(codes, stored, **given), W)
    blocks = -(-W[0].size // block_size) if block_size else 1
    assert codes.shape == (
        shape[0], blocks, reference.packed_bytes(block_size or W[0].size, FORMATS[given["format"]].bits),
    )  # fmt: skip
    assert [each.scheme for each in report.weights] == [scheme]
    energy, noise = np.square(kernel(shape)).sum(), np.square(kernel(shape) - W).sum()
    assert report.weights[0].sqnr == pytest.approx(10 * np.log10(energy / noise), abs=0.01)
    check_runs(proto, ir.to_proto(model_of(kind)), W)


@pytest.mark.parametrize(
    ("scheme", "block_size", "opset"), [("fp8", 0, 19), ("fp8-e5m2", 0, 19), ("fp8", 16, 21), ("mxfp8", None, 21)]
)
@pytest.mark.parametrize("kind", SHAPES)
def test_standard_form(kind, scheme, block_size, opset, tmp_path):
    recipe = Recipe(scheme=scheme, block_size=block_size, form="qdq")
    proto, _ = emitted(model_of(kind), recipe, tmp_path)
    W, _, block_size = rounded(kernel(SHAPES[kind][1]), recipe, SHAPES[kind][0])
    assert {node.domain for node in proto.graph.node} == {""}
    node = next(each for each in proto.graph.node if each.op_type == "DequantizeLinear")
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert given == ({"axis": 1, "block_size": block_size} if block_size else {"axis": 0})
    assert ("Reshape" in [each.op_type for each in proto.graph.node]) == bool(block_size)
    assert proto.opset_import[0].version == (opset if block_size else 19)
    check_runs(proto, ir.to_proto(model_of(kind)), W, 2e-6)


@pytest.mark.parametrize("form", ["qoperator", "qdq"])
def test_one_scale_for_all(form, tmp_path):
    recipe = Recipe(scheme="fp8", per_channel=False, form=form)
    proto, _ = emitted(model_of("plain"), recipe, tmp_path)
    W, scales, _ = rounded(kernel(SHAPES["plain"][1]), recipe)
    assert np.unique(scales).size == 1
    check_runs(proto, ir.to_proto(model_of("plain")), W, 2e-6 if form == "qdq" else 0)


@pytest.mark.parametrize(("scheme", "form"), [("fp8", "qoperator"), ("nf4", "qoperator"), ("fp8", "qdq")])
def test_float16(scheme, form, tmp_path):
    proto, _ = emitted(model_of("plain", np.float16), Recipe(scheme=scheme, form=form), tmp_path)
    x = feed(proto)
    got = open_session(proto.SerializeToString(), session_options()).run(None, x)[0]
    scale_type = "float16" if form == "qdq" else None
    W, *_ = rounded(kernel(SHAPES["plain"][1], dtype=np.float16), Recipe(scheme=scheme, scale_type=scale_type))
    plain = with_weight(ir.to_proto(model_of("plain", np.float16)), W.astype(np.float16))
    want = open_session(plain, session_options()).run(None, x)[0]
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, want, atol=4e-3 * np.abs(want).max())


def test_what_is_left_and_why():
    b = graphs.Builder()
    x = b.input("x", [1, 8, 9, 9])
    big = (24, 8, 3, 3)
    spoiled = kernel(big)
    spoiled[1, 2, 0, 0] = np.inf
    weights = {
        "taken": b.constant("a", kernel(big)),
        "small": b.constant("b", kernel((4, 8, 1, 1))),
        "computed": b.input("w", list(big)),
        "infinite": b.constant("c", spoiled),
        "double": b.constant("d", kernel(big).astype(np.float64)),
        "turned": b.op("Transpose", b.constant("e", kernel((3, 3, 8, 24))), name="turn"),
        "identity": b.op("Identity", b.constant("f", kernel(big)), name="same"),
        "excluded": b.constant("g", kernel(big)),
        "integers": b.constant("h", kernel(big)),
        "empty": b.constant("i", np.zeros((0, 8, 3, 3), np.float32)),
        "given": b.constant("j", kernel(big)),
    }
    b.graph.inputs.append(weights["given"])
    for name, weight in weights.items():
        b.op("Conv", x, weight, name=name)
    b.op("Conv", x, name="lacking")
    recipe = Recipe(scheme="fp8", exclude=("excluded",), overrides=(Override(match="integers", scheme="int8"),))
    assert {d.node.name: d.scheme or d.reason for d in plan(b.model(), recipe)} == {
        "taken": "fp8",
        "small": "fewer than 1024 weights",
        "computed": "no constant weight",
        "infinite": "the weight holds NaN or infinity",
        "double": "weight of type DOUBLE",
        "turned": "the weight is behind a Transpose",
        "identity": "fp8",
        "excluded": "excluded by the recipe",
        "integers": "weight-only schemes of integers do not take Conv (int8-static does)",
        "empty": "empty weight",
        "given": "the weight is also a graph input, which a caller may override",
        "lacking": "no constant weight",
    }


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        ("fp8-e3m4", "ONNX has no type for e3m4; form qoperator has an operator"),
        ("nf4", "ONNX has no type for nf4"),
        ("fp4", "nothing that we know of decodes FLOAT4E2M1 for convolutions; form qoperator"),
    ],
)
def test_what_the_standard_form_cannot_say(scheme, reason, tmp_path):
    with pytest.raises(OnnxpressError, match=f"nothing to quantize.*{reason}"):
        optimize(model_of("plain"), Recipe(scheme=scheme, form="qdq"), tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


def test_a_shared_weight_is_decoded_once(tmp_path):
    b = graphs.Builder()
    x, W = b.input("x", [1, 16, 9, 9]), b.constant("W", kernel((16, 16, 3, 3)))
    y = b.op("Conv", b.op("Conv", x, W, name="first"), W, name="second")
    b.output(y, [1, 16, 5, 5])
    proto, report = emitted(b.model(), Recipe(scheme="nf4"), tmp_path)
    assert report.rewritten == {"Conv": 2}
    assert [node.op_type for node in proto.graph.node] == ["DequantizeMiniFloat", "Conv", "Conv"]
    assert report.weights[0].nodes == ("first", "second")


def test_beside_products_inside_a_branch(tmp_path):
    """A Conv in a subgraph, a Gemm of another format, and what inspect and compare say of it."""
    b, inner, other = graphs.Builder(), graphs.Builder(), graphs.Builder()
    x = b.input("x", [1, 16, 9, 9])
    inner.output(inner.op("Conv", x, inner.constant("V", kernel((16, 16, 3, 3))), name="inner"), [1, 16, 7, 7])
    sliced = other.op("Conv", x, other.constant("U", kernel((16, 16, 3, 3), 4)), name="other")
    other.output(sliced, [1, 16, 7, 7])
    for branch in (inner, other):
        branch.graph.opset_imports.clear()
    y = b.op("If", b.input("choice", [], ir.DataType.BOOL), name="if", then_branch=inner.graph, else_branch=other.graph)
    y = b.op("Reshape", y, b.constant("shape", np.array([1, -1])), name="flat")
    b.output(b.op("Gemm", y, b.constant("G", kernel((784, 12), 2)), name="gemm"), [1, 12])
    source = tmp_path / "in.onnx"
    ir.save(b.model(), source)
    recipe = Recipe(scheme="fp8", accuracy_level=0, overrides=(Override(op_type="Gemm", scheme="nf4"),))
    proto, report = emitted(source, recipe, tmp_path)
    assert report.rewritten == {"Conv": 2, "Gemm": 1}
    x = RNG.standard_normal((8, 1, 16, 9, 9)).astype(np.float32)  # one is a sum of too few errors
    original = open_session(source, session_options())
    for choice in (True, False):
        feeds = [{"x": each, "choice": np.array(choice)} for each in x]
        want = np.array([original.run(None, each)[0] for each in feeds])
        for ours in (False, True):
            session = open_session(proto.SerializeToString(), session_options(ours=ours))
            got = np.array([session.run(None, each)[0] for each in feeds])
            assert np.square(got - want).sum() < 0.02 * np.square(want).sum()
    found = inspect(tmp_path / "out.onnx", Recipe(scheme="fp8"))
    assert found.operators["onnxpress::DequantizeMiniFloat"] == 2
    assert {(op, reason) for _, op, reason in found.left} == {
        ("DequantizeMiniFloat", "already quantized"), ("MatMulMiniFloat", "already quantized"),
    }  # fmt: skip
    with pytest.raises(OnnxpressError, match="already quantized"):
        optimize(tmp_path / "out.onnx", Recipe(scheme="fp8"), tmp_path / "again.onnx")


def test_compare_understands_it(tmp_path):
    source = tmp_path / "in.onnx"
    ir.save(model_of("plain"), source)
    emitted(source, Recipe(scheme="fp8"), tmp_path)
    (error,) = compare(source, tmp_path / "out.onnx").tensors
    assert error.op_type == "Conv"
    assert 25 < error.sqnr < 40


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_decoded_weights_of_products(dtype):
    """The helper serves MatMul, which reads [K, N], and Gemm with transB."""
    K, N, kind = 50, 24, ir.DataType.from_numpy(np.dtype(dtype))
    scheme = Recipe(scheme="fp8-e3m4").settings("", "MatMul").weight
    quantized = quantize_rtn(graphs.weight(K, N), scheme)
    W = reference.dequantize_minifloat(quantized.packed, quantized.scales, format="e3m4", block_size=0, K=K)
    for op_type in ("MatMul", "Gemm"):
        b = graphs.Builder()
        x = b.input("x", [3, K], kind)
        shape = [K, N] if op_type == "MatMul" else [N, K]
        y = b.op(
            op_type, x, b.input("unused", shape, kind), name="product", **({} if op_type == "MatMul" else {"transB": 1})
        )
        b.output(y, [3, N], kind)
        model = b.model()
        parts = b.constant("codes", quantized.packed), b.constant("scales", quantized.scales.astype(ml_dtypes.bfloat16))
        weight = decode_minifloat(
            model, y.producer(), *parts, format="e3m4", shape=(N, K), transposed=op_type == "MatMul", dtype=kind
        )
        y.producer().replace_input_with(1, weight)
        b.graph.inputs.pop()
        declare_functions(model)
        assert functions.DOMAIN in model.graph.opset_imports
        proto = ir.to_proto(model)
        onnx.checker.check_model(proto, full_check=True)
        x = RNG.standard_normal((3, K)).astype(dtype)
        got = open_session(proto.SerializeToString(), session_options()).run(None, {"x": x})[0]
        want = x.astype(np.float32) @ W
        np.testing.assert_allclose(got, want, atol=(1e-2 if dtype == np.float16 else 5e-3) * np.abs(want).max())
