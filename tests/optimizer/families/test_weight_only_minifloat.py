"""Weights as small floats: what is written, that each code is the nearest, and that ONNX Runtime computes with it."""

from __future__ import annotations

import json

import graphs
import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import sessions
from onnxpress.custom_ops import reference
from onnxpress.optimizer import Recipe, UsageError, optimize
from onnxpress.optimizer.errors import OnnxpressError
from onnxpress.optimizer.model_io import storage
from onnxpress.optimizer.planning.plan import plan
from onnxpress.optimizer.quantization.formats import FORMATS
from onnxpress.optimizer.quantization.rtn import quantize_rtn
from onnxpress.optimizer.quantization.schemes import SCHEMES
from onnxpress.optimizer.runtime.session import open_session, session_options
from onnxpress.optimizer.settings.recipe import Override
from rewrites import emitted

RNG = np.random.default_rng(23)
MINIFLOATS = [name for name, preset in SCHEMES.items() if not preset.integer and preset.family == "weight-only"]
BLOCK_FLOATS = ["bfp8", "bfp6", "bfp4"]
LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
ONE_OVERLOAD = ort.__version__.startswith("1.23.")
"""ONNX Runtime 1.23 takes the first of several functions of a name for all nodes."""


def weight_of(proto, op_type="MatMulMiniFloat"):
    """The weight [K, N] that the only node of a type reads, its attributes and arrays."""
    (node,) = (each for each in proto.graph.node if each.op_type == op_type)
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    packed, scales = (arrays[name] for name in node.input[1:3])
    form = {"format": attributes["format"].decode(), "block_size": attributes["block_size"], "K": attributes["K"]}
    return reference.dequantize_minifloat(packed, scales, **form), attributes, arrays, scales


def run(proto, x, ours, level=LEVELS[1]):
    # ONNX Runtime turns DequantizeLinear of integers + MatMul into MatMulNBits, by default with int8 activations.
    options = session_options(ours=ours, config={"session.qdq_matmulnbits_accuracy_level": "0"})
    options.graph_optimization_level = level
    return open_session(proto.SerializeToString(), options).run(None, {"x": x})[0]


def check_runs(proto, x, want, tolerance=2e-5, alone=True):
    for ours in (False, True) if alone else (True,):
        for level in LEVELS:
            bound = tolerance * np.abs(want).max()
            np.testing.assert_allclose(run(proto, x, ours, level), want, rtol=0, atol=bound, err_msg=f"{ours} {level}")


@pytest.mark.parametrize("scheme", MINIFLOATS)
def test_every_scheme(scheme, tmp_path):
    """At sizes that divide into nothing: the nearest codes, and their product."""
    K, N = 98, 37
    proto, report = emitted(graphs.matmul_model(K, N, bias=True), Recipe(scheme=scheme, accuracy_level=0), tmp_path)
    weight, attributes, _, scales = weight_of(proto)
    assert report.rewritten == {"MatMul": 1}
    assert report.schemes == {scheme: 1}
    assert [each.scheme for each in report.weights] == [scheme]
    preset, each = SCHEMES[scheme], FORMATS[SCHEMES[scheme].format]
    assert attributes["format"].decode() == preset.format
    assert attributes["block_size"] == preset.block_size
    stored = {"e8m0": np.uint8, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
    assert scales.dtype == stored[preset.scale_types[0]]
    blocks = -(-K // preset.block_size) if preset.block_size else 1
    assert scales.shape == (N, blocks)

    W = graphs.weight(K, N)
    factor = reference.E8M0[scales] if scales.dtype == np.uint8 else scales.astype(np.float32)
    spread = np.repeat(factor, preset.block_size or K, axis=1)[:, :K].T
    np.testing.assert_array_equal(weight, each.round(W / spread) * spread)
    energy, noise = np.square(W).sum(), np.square(W - weight).sum()
    assert report.weights[0].sqnr == pytest.approx(10 * np.log10(energy / noise), abs=0.01)
    assert report.weights[0].gain > 0
    x = RNG.standard_normal((5, K)).astype(np.float32)
    check_runs(proto, x, x @ weight + graphs.weight(1, N, 1)[0])


@pytest.mark.parametrize(("scheme", "form"), [(name, "qoperator") for name in MINIFLOATS] + [("fp8", "qdq")])
def test_execution_provider(scheme, form, tmp_path):
    proto, _ = emitted(graphs.matmul_model(96, 37, bias=True), Recipe(scheme=scheme, form=form), tmp_path)
    session = open_session(proto.SerializeToString(), session_options(provider={"accuracy_level": "0"}))
    expected = {"qoperator": ["MatMulMiniFloat"], "qdq": ["DequantizeLinear", "Gemm"]}[form]
    assert sessions.taken(session) in (None, expected)
    x = RNG.standard_normal((5, 96)).astype(np.float32)
    want = run(proto, x, ours=False)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], want, rtol=0, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("scale_type", ["float32", "float16", "bfloat16", "e8m0", "pow2"])
@pytest.mark.parametrize("block_size", [0, 16, 256])
def test_scales_and_blocks(scale_type, block_size, tmp_path):
    recipe = Recipe(scheme="fp6", scale_type=scale_type, block_size=block_size, accuracy_level=1)
    proto, _ = emitted(graphs.matmul_model(200, 33), recipe, tmp_path)
    weight, attributes, _, scales = weight_of(proto)
    assert attributes["accuracy_level"] == 1
    stored = {"e8m0": np.uint8, "pow2": np.float32, "bfloat16": ml_dtypes.bfloat16}
    assert scales.dtype == stored.get(scale_type, scale_type)
    if scale_type == "pow2":
        assert (np.frexp(scales)[0] == 0.5).all()
    W = graphs.weight(200, 33)
    assert np.square(W - weight).sum() < 10 ** (-2.5 if block_size in (0, 256) else -2.8) * np.square(W).sum()
    x = RNG.standard_normal((5, 200)).astype(np.float32)
    check_runs(proto, x, x @ weight)


def test_one_scale_for_all(tmp_path):
    recipe = Recipe(scheme="fp8-e3m4", per_channel=False, accuracy_level=0)
    proto, _ = emitted(graphs.matmul_model(), recipe, tmp_path)
    weight, _, _, scales = weight_of(proto)
    assert np.unique(scales).size == 1
    x = RNG.standard_normal((5, 64)).astype(np.float32)
    check_runs(proto, x, x @ weight)


@pytest.mark.parametrize("scheme", ["fp8", "fp6", "nf4", "mxfp4"])
def test_default_level(scheme, tmp_path):
    """Where the CPU multiplies bfloat16, activations, and the numbers of nf4, are rounded to its 8 bits."""
    proto, _ = emitted(graphs.matmul_model(96, 37, bias=True), Recipe(scheme=scheme), tmp_path)
    weight, attributes, *_ = weight_of(proto)
    assert attributes["accuracy_level"] == 3
    x = RNG.standard_normal((40, 96)).astype(np.float32)
    ours, body = run(proto, x, True), run(proto, x, False)
    bound = 2.0**-8 * (np.abs(x) @ np.abs(weight))  # two roundings of 2^-9
    assert (np.abs(ours - body) <= bound).all()


@pytest.mark.parametrize("scale_type", ["float32", "e8m0"])
def test_gemm(scale_type, tmp_path):
    """Alpha, which no scale of powers of two can take, both transposes, and a C."""
    K, N = 64, 40
    b = graphs.Builder()
    W, C = graphs.weight(K, N), graphs.weight(1, N, 1)[0]
    inputs = [b.input("x", [K, 6]), b.constant("W", np.ascontiguousarray(W.T)), b.constant("C", C)]
    b.output(b.op("Gemm", *inputs, name="gemm", alpha=-0.3, beta=2.0, transA=1, transB=1), [6, N])
    recipe = Recipe(scheme="fp8", scale_type=scale_type, accuracy_level=0, clean_up=False)
    proto, report = emitted(b.model(), recipe, tmp_path)
    assert report.rewritten == {"Gemm": 1}
    weight, *_ = weight_of(proto)
    assert np.square(weight + np.float32(0.3) * W).sum() < 2e-3 * np.square(0.3 * W).sum()
    x = RNG.standard_normal((K, 6)).astype(np.float32)
    check_runs(proto, x, x.T @ weight + 2 * C)


@pytest.mark.parametrize("scheme", ["fp8", "nf4", "mxfp4"])
def test_float16(scheme, tmp_path):
    proto, _ = emitted(graphs.matmul_model(96, 32, bias=True, dtype=np.float16), Recipe(scheme=scheme), tmp_path)
    weight, *_ = weight_of(proto)
    x = RNG.standard_normal((4, 96)).astype(np.float16)
    want = x.astype(np.float32) @ weight + graphs.weight(1, 32, 1, np.float16)[0]
    assert run(proto, x, False).dtype == np.float16
    check_runs(proto, x, want, 4e-3)


@pytest.mark.parametrize("form", ["qoperator", "onnxpress", "qdq"])
@pytest.mark.parametrize("scheme", BLOCK_FLOATS)
def test_block_floating_point(scheme, form, tmp_path):
    """Integers with powers of two run as integers do, stock where they can."""
    recipe = Recipe(scheme=scheme, form=form, accuracy_level=0)
    proto, report = emitted(graphs.matmul_model(100, 37), recipe, tmp_path)
    assert report.schemes == {scheme: 1}
    types = [(node.domain, node.op_type) for node in proto.graph.node]
    if form == "qdq":
        assert ("", "DequantizeLinear") in types
    else:
        stock = form == "qoperator" and scheme != "bfp6"
        assert ("com.microsoft" if stock else "onnxpress", "MatMulNBits") in types
    (scales,) = (onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.name.endswith("_scales"))
    assert scales.dtype == ml_dtypes.bfloat16
    assert (np.frexp(scales.astype(np.float32))[0] == 0.5).all()
    quantized = quantize_rtn(graphs.weight(100, 37), recipe.settings("", "MatMul").weight)
    bits = SCHEMES[scheme].format[3:]
    weight = reference.dequantize(quantized.packed, quantized.scales, None, bits=int(bits), block_size=32, K=100)
    x = RNG.standard_normal((5, 100)).astype(np.float32)
    check_runs(proto, x, x @ weight)


def test_block_floating_point_of_float16(tmp_path):
    """The scales of com.microsoft::MatMulNBits would be float16, which has few powers of two."""
    model = graphs.matmul_model(64, 32, dtype=np.float16)
    proto, _ = emitted(model, Recipe(scheme="bfp4"), tmp_path)
    assert [node.domain for node in proto.graph.node] == ["onnxpress"]
    assert run(proto, RNG.standard_normal((2, 64)).astype(np.float16), False).shape == (2, 32)


@pytest.mark.parametrize("opset", [7, 11, 12])
@pytest.mark.parametrize("scheme", BLOCK_FLOATS)
def test_block_floating_point_of_old_opsets(scheme, opset, tmp_path):
    """Scales of stock MatMulNBits are bfloat16 behind a Cast, which takes them from opset 13 on."""
    proto, _ = emitted(graphs.matmul_model(64, 32, opset=opset), Recipe(scheme=scheme, accuracy_level=0), tmp_path)
    assert run(proto, RNG.standard_normal((2, 64)).astype(np.float32), True).shape == (2, 32)


@pytest.mark.parametrize(
    ("scheme", "block_size", "kind", "opset", "ir_version"),
    [
        ("fp8", 0, ir.DataType.FLOAT8E4M3FN, 19, 9),
        ("fp8", 32, ir.DataType.FLOAT8E4M3FN, 21, 10),
        ("fp8-e5m2", 0, ir.DataType.FLOAT8E5M2, 19, 9),
        ("mxfp8", 32, ir.DataType.FLOAT8E4M3FN, 21, 10),
    ],
)
@pytest.mark.parametrize("op_type", ["MatMul", "Gemm"])
def test_standard_form(scheme, block_size, kind, opset, ir_version, op_type, tmp_path):
    K, N = 96, 37
    if op_type == "MatMul":
        model = graphs.matmul_model(K, N)
    else:
        b = graphs.Builder()
        W = b.constant("W", np.ascontiguousarray(graphs.weight(K, N).T))
        b.output(b.op("Gemm", b.input("x", ["m", K]), W, name="product", transB=1), ["m", N])
        model = b.model()
    model.ir_version = 8
    own = Recipe(scheme=scheme, block_size=block_size)
    proto, _ = emitted(model, Recipe(scheme=scheme, block_size=block_size, form="qdq"), tmp_path)
    (node,) = (each for each in proto.graph.node if each.op_type == "DequantizeLinear")
    kinds = {t.name: t.data_type for t in proto.graph.initializer}
    assert kinds[node.input[0]] == int(kind)
    assert {entry.domain: entry.version for entry in proto.opset_import}[""] == opset
    assert proto.ir_version == ir_version
    quantized = quantize_rtn(graphs.weight(K, N), own.settings("", "MatMul").weight)
    form = {"format": SCHEMES[scheme].format, "block_size": block_size, "K": K}
    weight = reference.dequantize_minifloat(quantized.packed, quantized.scales, **form)
    x = RNG.standard_normal((5, K)).astype(np.float32)
    check_runs(proto, x, x @ weight)


def test_standard_form_of_one_scale_and_of_float16(tmp_path):
    proto, _ = emitted(graphs.matmul_model(), Recipe(scheme="fp8", form="qdq", per_channel=False), tmp_path)
    (scale,) = (t for t in proto.graph.initializer if t.name.endswith("_scales"))
    assert list(scale.dims) == []
    x = RNG.standard_normal((3, 64)).astype(np.float32)
    want = x @ graphs.weight(64, 48)
    np.testing.assert_allclose(run(proto, x, False), want, atol=0.1 * np.abs(want).max())
    proto, _ = emitted(graphs.matmul_model(dtype=np.float16), Recipe(scheme="fp8", form="qdq"), tmp_path)
    np.testing.assert_allclose(run(proto, x.astype(np.float16), False), want, atol=0.1 * np.abs(want).max())


def test_standard_form_of_four_bits(tmp_path):
    """ONNX has it from opset 23 on, no ONNX Runtime that we know of a kernel."""
    proto, report = emitted(graphs.matmul_model(), Recipe(scheme="fp4", form="qdq"), tmp_path)
    assert proto.opset_import[0].version == 23
    assert proto.ir_version == 11
    assert any("no DequantizeLinear of FLOAT4E2M1" in warning for warning in report.warnings)
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    codes, scales = (arrays[name].astype(np.float32) for name in ("W_fp4_codes", "W_fp4_scales"))
    weight = codes * np.repeat(scales, 32, axis=0)
    other, _ = emitted(graphs.matmul_model(), Recipe(scheme="fp4"), tmp_path)
    np.testing.assert_array_equal(weight, weight_of(other)[0])


@pytest.mark.parametrize(
    ("scheme", "dtype", "reason"),
    [
        ("fp8-e3m4", np.float32, "ONNX has no type for e3m4; form qoperator has an operator"),
        ("fp6", np.float32, "ONNX has no type for e2m3"),
        ("nf4", np.float32, "ONNX has no type for nf4"),
        ("mxfp8", np.float16, "DequantizeLinear to float16 takes no scales of e8m0; form qoperator does"),
        ("bfp8", np.float16, "DequantizeLinear to float16 takes no scales of e8m0"),
    ],
)
def test_what_the_standard_form_cannot_say(scheme, dtype, reason, tmp_path):
    with pytest.raises(OnnxpressError, match=f"nothing to quantize.*{reason}"):
        optimize(graphs.matmul_model(dtype=dtype), Recipe(scheme=scheme, form="qdq"), tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize(
    ("scheme", "lacking"),
    [(scheme, scheme) for scheme in ("fp8", "nf4", "bfp8", "mxfp4")]
    + [(f"int{bits}", f"{bits} bits") for bits in (2, 3, 5, 6)],
)
def test_tables_are_left(scheme, lacking, embeddings):
    b = graphs.Builder()
    table, ids = b.constant("table", graphs.weight(16400, 64)), b.input("ids", ["m"], ir.DataType.INT64)
    x = b.op("Gather", table, ids, name="embed")
    b.output(b.op("MatMul", x, b.constant("W", graphs.weight(64, 32)), name="product"), ["m", 32])
    decisions = {d.node.name: d for d in plan(b.model(), Recipe(scheme=scheme, embeddings=embeddings))}
    assert decisions["embed"].reason == f"GatherBlockQuantized has no {lacking}"
    assert decisions["product"].taken


def test_weights_that_are_no_numbers_are_left(tmp_path):
    b = graphs.Builder()
    W = graphs.weight(64, 64)
    W[3, 5] = np.nan
    b.output(b.op("MatMul", b.input("x", ["m", 64]), b.constant("W", W), name="product"), ["m", 64])
    assert [d.reason for d in plan(b.model(), Recipe(scheme="fp8"))] == ["the weight holds NaN or infinity"]
    with pytest.raises(OnnxpressError, match="the weight holds NaN or infinity"):
        optimize(b.model(), Recipe(scheme="fp8"), tmp_path / "out.onnx")


def test_alpha_that_is_no_number_is_left():
    b = graphs.Builder()
    inputs = [b.input("x", ["m", 64]), b.constant("W", graphs.weight(64, 64))]
    b.output(b.op("Gemm", *inputs, name="gemm", alpha=float("inf")), ["m", 64])
    assert [d.reason for d in plan(b.model(), Recipe(scheme="fp8"))] == ["alpha is no finite number"]


def test_formats_by_node(tmp_path):
    b = graphs.Builder()
    x = b.input("x", ["m", 64])
    for name in ("first", "second", "third"):
        x = b.op("MatMul", x, b.constant(f"{name}_W", graphs.weight(64, 64)), name=name)
    b.output(x, ["m", 64])
    recipe = Recipe(
        scheme="fp8", accuracy_level=0,
        overrides=(Override(match="second", scheme="nf4", block_size=64), Override(match="third", scheme="int8")),
    )  # fmt: skip
    proto, report = emitted(b.model(), recipe, tmp_path)
    assert report.schemes == {"fp8": 1, "nf4": 1, "int8": 1}
    assert [node.op_type for node in proto.graph.node] == ["MatMulMiniFloat", "MatMulMiniFloat", "MatMulNBits"]
    x = RNG.standard_normal((3, 64)).astype(np.float32)
    want, W = x, graphs.weight(64, 64)
    for name, format_, block_size in (("first", "e4m3fn", 0), ("second", "nf4", 64)):
        quantized = quantize_rtn(W, recipe.settings(name, "MatMul").weight)
        form = {"format": format_, "block_size": block_size, "K": 64}
        want = want @ reference.dequantize_minifloat(quantized.packed, quantized.scales, **form)
    quantized = quantize_rtn(W, recipe.settings("third", "MatMul").weight)
    want = want @ reference.dequantize(quantized.packed, quantized.scales, None, bits=8, block_size=32, K=64)
    check_runs(proto, x, want, alone=not ONE_OVERLOAD)


def test_zeros(tmp_path):
    b = graphs.Builder()
    W = graphs.weight(64, 32)
    W[:32, :3] = 0
    W[:, 5] = 0
    b.output(b.op("MatMul", b.input("x", ["m", 64]), b.constant("W", W), name="product"), ["m", 32])
    proto, _ = emitted(b.model(), Recipe(scheme="mxfp4"), tmp_path)
    weight, _, arrays, scales = weight_of(proto)
    assert (weight[:, 5] == 0).all()
    assert (scales[5] == 127).all()
    assert (scales[:3, 0] == 127).all()
    assert (arrays["W_mxfp4_codes"][5] == 0).all()


def test_files_and_recipes(tmp_path):
    """Through a file with external data, from the names of a recipe, which the output keeps."""
    source = tmp_path / "in.onnx"
    ir.save(graphs.matmul_model(512, 512), source, external_data="in.data")
    recipe = Recipe.from_mapping({"scheme": "nf4", "scale_type": "float16", "block_size": 64})
    report = optimize(source, recipe, tmp_path / "out.onnx")
    assert report.size_after < 512 * 512 * (4.25 / 8) + 20000
    stored = storage.load(tmp_path / "out.onnx").metadata_props["onnxpress.recipe"]
    assert Recipe.from_mapping(json.loads(stored)) == recipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scheme": "fp7"}, 'scheme is "fp7"; did you mean "fp'),
        ({"scheme": "fp8", "scale_type": "float8"}, 'scale_type is "float8"'),
        ({"scheme": "mxfp4", "block_size": 64}, "block_size is 64, but mxfp4 has blocks of 32 by definition"),
        ({"scheme": "mxfp4", "scale_type": "float32"}, 'scale_type is "float32", but mxfp4 takes e8m0'),
        ({"scheme": "int4", "scale_type": "e8m0"}, 'scale_type is "e8m0", but int4 takes half or float32 or float16'),
        ({"scheme": "bfp8", "scale_type": "float32"}, 'scale_type is "float32", but bfp8 takes e8m0 or pow2'),
        ({"scheme": "int4", "block_size": 0}, "block_size is 0, one scale a channel, which int4 has not"),
        ({"scheme": "fp8", "symmetric": False}, "symmetric is false, but fp8 has no zero points"),
        ({"scheme": "bfp4", "symmetric": False}, "symmetric is false, but bfp4 has no zero points"),
        ({"scheme": "fp8", "accuracy_level": 4}, "accuracy_level is 4, activations of int8, but fp8 takes 0 to 3"),
        ({"scheme": "fp4", "per_channel": False}, "per_channel is false, but fp4 has blocks of 32"),
        (
            {"scheme": "int8", "block_size": 64, "overrides": [{"match": "a", "scheme": "mxfp8"}]},
            "overrides[0]: block_size is 64, but mxfp8 has blocks of 32 by definition",
        ),
    ],
)
def test_settings_that_do_not_go_together(values, message):
    with pytest.raises(UsageError) as error:
        Recipe.from_mapping(values)
    assert message in str(error.value)


def test_both_layouts_give_the_same_codes():
    W = graphs.weight(100, 70)
    for scheme in ("fp8", "fp6", "nf4", "mxfp4", "bfp6"):
        settings = Recipe(scheme=scheme).settings("", "MatMul").weight
        a, b = quantize_rtn(W, settings), quantize_rtn(np.ascontiguousarray(W.T), settings, transposed=True)
        np.testing.assert_array_equal(a.packed, b.packed)
        np.testing.assert_array_equal(a.scales, b.scales)
