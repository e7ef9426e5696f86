"""What was converted before, by us or by others, is refused by every scheme, and left whole."""

from __future__ import annotations

import dataclasses

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress.optimizer import optimize
from onnxpress.optimizer.analysis.inspect import inspect
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.conversion.calibrate import calibrate
from onnxpress.optimizer.errors import OnnxpressError
from onnxpress.optimizer.planning.already_quantized import quantized_nodes
from onnxpress.optimizer.settings.recipe import Recipe
from schemes import ONE_A_FAMILY

SCHEMES = (*ONE_A_FAMILY, "int8", "fp8")
BOTH_ENDS = Recipe(scheme="fp8-dynamic", first_and_last=True)
DATA = [{"x": np.random.default_rng(i).standard_normal((1, 8, 8, 8)).astype(np.float32)} for i in range(2)]


def network() -> ir.Model:
    """A convolution, three products, one of them of two activations; some stay in float."""
    b = graphs.Builder(17)
    kernel, vector = graphs.weight(16, 72).reshape(16, 8, 3, 3), b.constant("v", np.ones(32, np.float32))
    y = b.op("Conv", b.input("x", [1, 8, 8, 8]), b.constant("C", kernel), name="conv")
    y = b.op("Reshape", y, b.constant("rows", np.array([9, 64])))
    y = b.op("MatMul", y, b.constant("W", graphs.weight(64, 48)), name="product")
    y = b.op("Gemm", b.op("Relu", y), b.constant("V", graphs.weight(48, 32)), vector, name="rest")
    b.output(b.op("MatMul", y, b.op("Transpose", y, perm=[1, 0]), name="scores"), [9, 9])
    return b.model()


OURS = [
    ("com.microsoft::MatMulNBits", "product", Recipe(scheme="int4")),
    ("DequantizeLinear of UINT4", "product", Recipe(scheme="int4", form="qdq")),
    ("onnxpress::MatMulNBits", "product", Recipe(scheme="int5")),
    ("onnxpress::MatMulMiniFloat", "product", Recipe(scheme="nf4")),
    ("DequantizeLinear of FLOAT8E4M3FN", "product", Recipe(scheme="fp8", form="qdq")),
    ("onnxpress::DequantizeMiniFloat", "conv", Recipe(scheme="fp8")),
    ("DequantizeLinear of .*", "conv", Recipe(scheme="int8-static")),
    ("DynamicQuantizeLinear", "product", Recipe(scheme="int8-dynamic")),
    ("DequantizeLinear of FLOAT8E5M2", "scores", dataclasses.replace(BOTH_ENDS, activation_format="e5m2")),
    ("onnxpress::RoundMiniFloat", "scores", dataclasses.replace(BOTH_ENDS, activation_format="e3m4")),
    ("onnxpress::BlockSparseMatMul", "product", Recipe(scheme="sparse")),
]
"""What is found first, and the node that it was made of."""


def given(scheme: str) -> Calibration | None:
    return Calibration(DATA) if scheme.endswith("-static") else None


def refused(model: ir.Model, scheme: str, form: str) -> None:
    before = list(model.graph)
    with pytest.raises(OnnxpressError, match=rf"already quantized, as node '.+' \({form}\) shows; convert the float"):
        optimize(model, Recipe(scheme=scheme), calibration=given(scheme))
    assert list(model.graph) == before


@pytest.mark.parametrize(("form", "node", "recipe"), OURS)
def test_what_we_made_is_refused_by_all_schemes(form, node, recipe):
    model = network()
    assert not list(quantized_nodes(model))
    report = optimize(model, dataclasses.replace(recipe, include=(node,)), calibration=given(recipe.scheme))
    assert sum(report.rewritten.values()) == 1
    for scheme in SCHEMES:
        refused(model, scheme, form)


def _integers(b: graphs.Builder, x: ir.Value) -> ir.Value:
    codes, scale, zero = b.op("DynamicQuantizeLinear", x, outputs=3)
    y = b.op("MatMulInteger", codes, b.constant("codes", np.ones((64, 64), np.int8)), zero)
    return b.op("Mul", b.op("Cast", y, to=1), scale)


def _weight(b: graphs.Builder, x: ir.Value) -> ir.Value:
    codes = b.op("Transpose", b.constant("codes", np.ones((64, 64), np.int8)), perm=[1, 0])
    return b.op("MatMul", x, b.op("DequantizeLinear", codes, b.constant("s", np.array(0.1, np.float32))))


def _rows(b: graphs.Builder, x: ir.Value) -> ir.Value:
    ids = b.op("Cast", x, to=7)
    rows = b.op("Gather", b.constant("codes", np.ones((64, 64), np.int8)), ids)
    return b.op("ReduceSum", b.op("DequantizeLinear", rows, b.constant("s", np.array(0.1, np.float32))), keepdims=0)


def _activations(b: graphs.Builder, x: ir.Value) -> ir.Value:
    scale = b.constant("s", np.array(0.1, np.float32))
    moved = b.op("Reshape", b.op("QuantizeLinear", x, scale), b.constant("shape", np.array([-1, 64])))
    return b.op("DequantizeLinear", moved, scale)


def _of_a_runtime(b: graphs.Builder, x: ir.Value) -> ir.Value:
    return b.op("QLinearSigmoid", x, domain="com.microsoft")


def _in_a_function(b: graphs.Builder, x: ir.Value) -> ir.Value:
    return b.op("decode", x, domain="local")


@pytest.mark.parametrize(
    ("make", "form"),
    [
        (_integers, "DynamicQuantizeLinear"), (_weight, "DequantizeLinear"), (_rows, "DequantizeLinear"),
        (_activations, "DequantizeLinear"), (_of_a_runtime, "com.microsoft::QLinearSigmoid"),
        (_in_a_function, "DequantizeLinear of INT8"),
    ],
)  # fmt: skip
def test_what_others_made_is_refused_by_all_schemes(make, form):
    b = graphs.Builder(17)
    y = make(b, b.input("x", ["n", 64]))
    b.output(b.op("MatMul", y, b.constant("W", graphs.weight(64, 48)), name="product"), ["n", 48])
    model = b.model()
    if make is _in_a_function:
        add_function(model, "decode")
    for scheme in SCHEMES:
        refused(model, scheme, form)


def add_function(model: ir.Model, name: str) -> None:
    inner = graphs.Builder(17)
    x = ir.Value(name="x")
    codes = ir.tensor(np.ones((64, 64), np.int8))
    weight = inner.op("DequantizeLinear", inner.op("Constant", value=codes), inner.op("Constant", value_float=0.1))
    weight.producer().inputs[0].type = ir.TensorType(ir.DataType.INT8)
    inner.graph.inputs.append(x)
    inner.graph.outputs.append(inner.op("MatMul", x, weight))
    function = ir.Function("local", name, graph=inner.graph, attributes=[])
    model.functions[function.identifier()] = function
    model.graph.opset_imports["local"] = 1


@pytest.mark.parametrize("scheme", ["int4", "int8-dynamic", "fp8-dynamic", "sparse"])
def test_codes_of_the_caller_are_no_sign(scheme):
    """Bytes of an image in, bytes out, and a function that nobody calls."""
    b = graphs.Builder(17)
    image = b.op("Transpose", b.input("image", ["n", 64], ir.DataType.UINT8), perm=[1, 0])
    scale = b.constant("scale", np.array(1 / 255, np.float32))
    x = b.op("Transpose", b.op("DequantizeLinear", image, scale), perm=[1, 0])
    y = b.op("MatMul", x, b.constant("W", graphs.weight(64, 48)), name="product")
    b.output(b.op("QuantizeLinear", y, scale), ["n", 48], ir.DataType.UINT8)
    model = b.model()
    add_function(model, "unused")
    assert sum(optimize(model, Recipe(scheme=scheme)).rewritten.values()) == 1


def test_a_ring_of_nodes_ends():
    """A hostile file: each of two nodes reads the other."""
    b = graphs.Builder()
    first = b.op("Neg", b.constant("c", np.ones(1, np.int8)))
    second = b.op("Neg", first)
    first.producer().replace_input_with(0, second)
    b.output(b.op("DequantizeLinear", second, b.constant("s", np.array(1, np.float32))), [1])
    assert [node.op_type for node in quantized_nodes(b.model())] == ["DequantizeLinear"]


RNG = np.random.default_rng(0)


def integers(b: graphs.Builder, dtype: type = np.int8, *shape: int) -> ir.Value:
    low, high = (0, 16) if dtype in (np.uint8, np.int64) else (-127, 128)
    return b.constant("codes", RNG.integers(low, high, shape or (64, 64)).astype(dtype))


def real(b: graphs.Builder, name: str, value: object) -> ir.Value:
    return b.constant(name, np.asarray(value, np.float32))


def symmetric(b: graphs.Builder, x: ir.Value) -> ir.Value:
    return b.op("MatMul", x, b.op("Mul", b.op("Cast", integers(b), to=1), real(b, "s", 0.1)))


def with_zero_points(b: graphs.Builder, x: ir.Value) -> ir.Value:
    moved = b.op("Sub", b.op("Cast", integers(b, np.uint8), to=1), real(b, "z", np.full((1, 64), 8)))
    return b.op("MatMul", x, b.op("Mul", moved, real(b, "s", 0.1)))


def with_an_offset(b: graphs.Builder, x: ir.Value) -> ir.Value:
    scaled = b.op("Mul", b.op("Cast", integers(b), to=1), real(b, "s", 0.1))
    return b.op("MatMul", x, b.op("Transpose", b.op("Add", scaled, real(b, "o", 0.5)), perm=[1, 0]))


def in_half(b: graphs.Builder, x: ir.Value) -> ir.Value:
    scaled = b.op("Mul", b.op("Cast", integers(b), to=10), b.constant("s", np.float16(0.1)))
    return b.op("Gemm", x, b.op("Cast", scaled, to=1), transB=1)


def scaled_behind(b: graphs.Builder, x: ir.Value) -> ir.Value:
    return b.op("Mul", b.op("MatMul", x, b.op("Cast", integers(b), to=1)), real(b, "s", 0.1))


def nibbles(b: graphs.Builder, x: ir.Value) -> ir.Value:
    packed = integers(b, np.uint8, 32, 64)
    low = b.op("BitwiseAnd", packed, b.constant("fifteen", np.uint8(15)))
    high = b.op("BitShift", packed, b.constant("four", np.uint8(4)), direction="RIGHT")
    return b.op("MatMul", x, b.op("Mul", b.op("Cast", b.op("Concat", low, high, axis=0), to=1), real(b, "s", 0.1)))


def words(b: graphs.Builder, x: ir.Value) -> ir.Value:
    packed = b.constant("codes", RNG.integers(0, 1 << 31, (8, 1, 64)).astype(np.uint32))
    shifted = b.op("BitShift", packed, b.constant("by", np.arange(0, 32, 4, np.uint32)[:, None]), direction="RIGHT")
    codes = b.op(
        "Reshape", b.op("BitwiseAnd", shifted, b.constant("m", np.uint32(15))), b.constant("k", np.array(SIZE))
    )
    return b.op("MatMul", x, b.op("Mul", b.op("Cast", codes, to=1), real(b, "s", np.ones((1, 64)))))


def codebook(b: graphs.Builder, x: ir.Value) -> ir.Value:
    return b.op("MatMul", x, b.op("Gather", real(b, "book", np.linspace(-1, 1, 16)), integers(b, np.int64)))


def codebook_of_bytes(b: graphs.Builder, x: ir.Value) -> ir.Value:
    codes = b.op("Cast", integers(b, np.uint8), to=7)
    return b.op("MatMul", x, b.op("Gather", real(b, "book", np.linspace(-1, 1, 16)), codes))


def rows(b: graphs.Builder, x: ir.Value) -> ir.Value:
    gathered = b.op("Gather", integers(b), b.op("Cast", x, to=7))
    return b.op("ReduceSum", b.op("Mul", b.op("Cast", gathered, to=1), real(b, "s", 0.1)), keepdims=0)


def convolution(b: graphs.Builder, x: ir.Value) -> ir.Value:
    kernel = b.op("Mul", b.op("Cast", integers(b, np.int8, 64, 64, 1), to=1), real(b, "s", np.ones((64, 1, 1))))
    return b.op("Conv", b.op("Unsqueeze", x, b.constant("axis", np.array([2]))), kernel)


SIZE = [64, 64]
BY_HAND = (
    symmetric, with_zero_points, with_an_offset, in_half, scaled_behind, nibbles, words, codebook, codebook_of_bytes,
    rows, convolution,
)  # fmt: skip


@pytest.mark.parametrize("make", BY_HAND, ids=lambda make: make.__name__)
def test_weights_that_are_decoded_by_hand_are_told(make):
    b = graphs.Builder(18)
    b.output(make(b, b.input("x", [64, 64])), [64, 64])
    model = b.model()
    for scheme in ("int8", "int8-static", "sparse"):
        refused(model, scheme, r"(MatMul|Gemm|Conv) of a weight made of codes|Cast of codes")


def test_a_product_in_a_function_that_gets_the_codes():
    inner = graphs.Builder(18)
    x, codes = inner.input("x", [64, 64]), inner.input("codes", SIZE)
    inner.graph.outputs.append(inner.op("MatMul", x, inner.op("Cast", codes, to=1), name="product"))
    function = ir.Function("local", "multiply", graph=inner.graph, attributes=[])
    b = graphs.Builder(18)
    b.output(b.op("multiply", b.input("x", [64, 64]), integers(b), domain="local"), [64, 64])
    model = b.model()
    model.functions[function.identifier()] = function
    assert [node.name for node in quantized_nodes(model)] == ["product"]


def masked_weight(b: graphs.Builder, x: ir.Value) -> ir.Value:
    mask = b.op("Cast", b.constant("mask", RNG.integers(0, 2, SIZE).astype(np.uint8)), to=1)
    return b.op("MatMul", x, b.op("Mul", b.constant("W", graphs.weight(64, 64)), mask))


def masked_activation(b: graphs.Builder, x: ir.Value) -> ir.Value:
    mask = b.op("Cast", b.constant("mask", RNG.integers(0, 2, SIZE).astype(np.uint8)), to=1)
    return b.op("MatMul", b.op("Mul", x, mask), b.constant("W", graphs.weight(64, 64)))


def bytes_of_an_image(b: graphs.Builder, x: ir.Value) -> ir.Value:
    pixels = b.op("Cast", b.op("Cast", x, to=2), to=1)
    return b.op("MatMul", b.op("Mul", pixels, real(b, "s", 1 / 255)), b.constant("W", graphs.weight(64, 64)))


def positions(b: graphs.Builder, x: ir.Value) -> ir.Value:
    rows = b.op("Gather", b.constant("table", graphs.weight(64, 64)), b.constant("ids", np.arange(64)))
    return b.op("MatMul", x, b.op("Add", rows, b.constant("W", graphs.weight(64, 64))))


def attended(b: graphs.Builder, x: ir.Value) -> ir.Value:
    keys = b.op("Mul", b.op("Transpose", x, perm=[1, 0]), b.op("Cast", integers(b), to=1))
    return b.op("MatMul", b.op("MatMul", x, keys), b.constant("W", graphs.weight(64, 64)))


@pytest.mark.parametrize("make", [masked_weight, masked_activation, bytes_of_an_image, positions, attended])
def test_a_float_model_that_casts_integers_is_taken(make):
    b = graphs.Builder(18)
    b.output(make(b, b.input("x", [64, 64])), [64, 64])
    assert optimize(b.model(), Recipe(scheme="int8")).rewritten == {"MatMul": 1}


def test_commands_on_files(tmp_path):
    """Inspection tells, and calibration has nothing to learn for."""
    path = tmp_path / "m.onnx"
    optimize(network(), Recipe(scheme="int8-dynamic"), path)
    for scheme in SCHEMES:
        found = inspect(path, Recipe(scheme=scheme))
        assert not found.taken
        assert {reason for *_, reason in found.left} == {"already quantized"}
    with pytest.raises(OnnxpressError, match=r"m\.onnx: the model is already quantized"):
        calibrate(path, DATA, tmp_path / "s.npz")
    with pytest.raises(OnnxpressError, match=r"m\.onnx: the model is already quantized"):
        optimize(path, Recipe(), tmp_path / "twice.onnx")
    assert not (tmp_path / "twice.onnx").exists()


@pytest.mark.real
@pytest.mark.parametrize("scheme", ["fp8", "int4", "fp8-dynamic"])
def test_minilm(scheme, tmp_path):
    optimize("minilm", Recipe(scheme=scheme), tmp_path / "m.onnx")
    for again in ("fp8-dynamic", "int8-dynamic", "int4", "sparse"):
        with pytest.raises(OnnxpressError, match="already quantized"):
            optimize(tmp_path / "m.onnx", Recipe(scheme=again), tmp_path / "twice.onnx")
