"""What codes of small floating-point formats stand for, and the function body that says so in standard ops."""

from __future__ import annotations

import statistics

import graphs
import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress.custom_ops import functions, reference
from sessions import options

pytestmark = pytest.mark.unsanitized  # NumPy and ONNX Runtime compute

RNG = np.random.default_rng(5)
KINDS = {
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e3m4": ml_dtypes.float8_e3m4,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
}


def same_bits(a, b):
    """Equal to the sign of zero; NaN is NaN."""
    nan = np.isnan(b)
    np.testing.assert_array_equal(np.isnan(a), nan)
    np.testing.assert_array_equal(a[~nan].view(np.uint32), b[~nan].view(np.uint32))


@pytest.mark.parametrize("format", KINDS)
def test_every_code_is_what_ml_dtypes_says(format):
    bits = reference.minifloat_bits(format)
    codes = np.arange(2**bits, dtype=np.uint8)
    assert reference.MINIFLOATS[format].shape == codes.shape
    same_bits(reference.MINIFLOATS[format], codes.view(KINDS[format]).astype(np.float32))


@pytest.mark.parametrize(
    ("format", "largest", "smallest", "finite"),
    [
        ("e4m3fn", 448, 2**-9, 254), ("e5m2", 57344, 2**-16, 248), ("e3m4", 15.5, 2**-6, 224),
        ("e3m2", 28, 2**-4, 64), ("e2m3", 7.5, 2**-3, 64), ("e2m1", 6, 0.5, 16), ("nf4", 1, None, 16),
    ],
)  # fmt: skip
def test_ranges(format, largest, smallest, finite):
    values = reference.MINIFLOATS[format]
    values = values[np.isfinite(values)]
    assert values.max() == -values.min() == largest
    assert values.size == finite
    assert smallest is None or values[values > 0].min() == smallest
    assert reference.MINIFLOATS[format][reference.minifloat_zero(format)].view(np.uint32) == 0


def test_nf4_are_quantiles_of_a_normal_distribution():
    quantile = statistics.NormalDist().inv_cdf
    negative = [quantile(p) for p in np.linspace(1 - 0.9677083, 0.5, 8)]
    positive = [quantile(p) for p in np.linspace(0.5, 0.9677083, 9)]
    want = np.array(negative + positive[1:])
    np.testing.assert_allclose(reference.MINIFLOATS["nf4"], want / want.max(), atol=2e-7)


def test_scales_of_exponents_alone():
    codes = np.arange(256, dtype=np.uint8)
    same_bits(reference.E8M0, codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32))


SCALES = [np.float32, np.float16, ml_dtypes.bfloat16, np.uint8]


def make(format="e4m3fn", K=100, N=7, block_size=32, scale=np.float32, activation=np.float32, bias=False, opset=18):
    """A model of one node with all codes that are numbers, and the arrays in it."""
    bits, size = reference.minifloat_bits(format), block_size or K
    numbers = np.flatnonzero(np.isfinite(reference.MINIFLOATS[format])).astype(np.uint8)
    codes = RNG.choice(numbers, (N, -(-K // size), size))
    scales = RNG.uniform(0.01, 0.02, codes.shape[:2]).astype(np.float32)
    scales = RNG.integers(110, 130, scales.shape, np.uint8) if scale == np.uint8 else scales.astype(scale)
    arrays = {"B": reference.pack_codes(codes, bits), "scales": scales}
    if bias:
        arrays["bias"] = RNG.standard_normal(N).astype(activation)
    kind = ir.DataType.from_numpy(np.dtype(activation))
    b = graphs.Builder(opset)
    inputs = [b.input("A", ["a", "b", K], kind), *(b.constant(name, array) for name, array in arrays.items())]
    body = functions.matmul_minifloat(
        format=format, K=K, N=N, block_size=block_size, activation=kind,
        scale=ir.DataType.from_numpy(np.dtype(scale)), bias=bias, opset=opset,
    )  # fmt: skip
    y = b.op(
        "MatMulMiniFloat", *inputs, name="the_node", domain="onnxpress",
        K=K, N=N, format=format, block_size=block_size, accuracy_level=0,
    )  # fmt: skip
    y.producer().overload = body.overload
    b.output(y, ["a", "b", N], kind)
    b.graph.opset_imports["onnxpress"] = 1
    model = b.model()
    model.functions[body.identifier()] = body
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString(), arrays


def run(model, A, level=ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
    return ort.InferenceSession(model, options(graph_optimization_level=level)).run(None, {"A": A})[0]


@pytest.mark.parametrize("format", reference.MINIFLOATS)
@pytest.mark.parametrize("scale", SCALES, ids=lambda kind: np.dtype(kind).name)
@pytest.mark.parametrize("block_size", [0, 32])
def test_weight_of_the_body_is_exact(format, scale, block_size):
    """Rows of the identity bring the weight out; 98 is no multiple of the block, nor of the codes in a byte."""
    K = 98
    model, arrays = make(format, K, 7, block_size, scale)
    want = reference.dequantize_minifloat(**_named(arrays), format=format, block_size=block_size, K=K)
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        np.testing.assert_array_equal(run(model, np.eye(K, dtype=np.float32)[None], level)[0], want)


def _named(arrays):
    return {"packed": arrays["B"], "scales": arrays["scales"]}


@pytest.mark.parametrize("exponent", [0, 1, 127, 252])
def test_all_exponents_of_a_scale(exponent):
    model, arrays = make("e2m1", 32, 1, 32, np.uint8)
    proto = onnx.ModelProto.FromString(model)
    (scales,) = (tensor for tensor in proto.graph.initializer if tensor.name == "scales")
    scales.raw_data = bytes([exponent])
    values = reference.MINIFLOATS["e2m1"][reference.unpack_codes(arrays["B"], 4, 32, 32)]
    want = values.astype(np.float64) * 2.0 ** (exponent - 127)
    got = run(proto.SerializeToString(), np.eye(32, dtype=np.float32)[None])[0].T
    np.testing.assert_array_equal(got.astype(np.float64), want)


@pytest.mark.parametrize("opset", [functions.MIN_OPSET, 21])
@pytest.mark.parametrize("activation", [np.float32, np.float16])
@pytest.mark.parametrize("format", ["e4m3fn", "e2m3", "nf4"])
def test_product(format, activation, opset):
    model, arrays = make(format, activation=activation, bias=True, opset=opset)
    A = RNG.standard_normal((2, 3, 100)).astype(activation)
    want = reference.matmul_minifloat(
        A, **_named(arrays), bias=arrays["bias"], format=format, block_size=32, K=100
    )  # fmt: skip
    got = run(model, A)
    assert got.dtype == activation
    bound = (1e-5 if activation == np.float32 else 1e-3) * np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=bound)


def test_level_3_rounds_activations_to_bfloat16():
    _, arrays = make()
    A = RNG.standard_normal((5, 100)).astype(np.float32)
    common = {**_named(arrays), "format": "e4m3fn", "block_size": 32, "K": 100}
    rounded = A.astype(ml_dtypes.bfloat16).astype(np.float32)
    got = reference.matmul_minifloat(A, **common, accuracy_level=3)
    np.testing.assert_array_equal(got, reference.matmul_minifloat(rounded, **common))
    assert not np.array_equal(got, reference.matmul_minifloat(A, **common))


def test_overloads_tell_everything_apart():
    base = {"format": "e4m3fn", "K": 64, "N": 32}
    changes = [
        {}, {"format": "e5m2"}, {"K": 48}, {"N": 16}, {"block_size": 32}, {"bias": True},
        {"activation": ir.DataType.FLOAT16}, {"scale": ir.DataType.UINT8}, {"scale": ir.DataType.BFLOAT16},
    ]  # fmt: skip
    names = {functions.matmul_minifloat(**(base | change)).overload for change in changes}
    assert len(names) == len(changes)


def dense(format):
    """Float32 of all exponents, every number of a format, the middles of neighbours and what lies beside these."""
    x = np.arange(0, 2**32, 1 << 14, dtype=np.uint64).astype(np.uint32).view(np.float32)
    values = np.unique(reference.MINIFLOATS[format][np.isfinite(reference.MINIFLOATS[format])])
    middles = (values[1:] + values[:-1]) / 2
    exact = np.concatenate([values, middles])
    x = np.concatenate([x[np.isfinite(x)], exact, *(np.nextafter(exact, np.float32(end)) for end in (-np.inf, np.inf))])
    return x.astype(np.float32)


def rounded(x, scale, format):
    """What ml_dtypes makes of it; its casts do not saturate."""
    values = reference.MINIFLOATS[format]
    most = values[np.isfinite(values)].max()
    with np.errstate(over="ignore"):
        held = np.clip(x / np.float32(scale), -most, most)
    return held.astype(KINDS[format]).astype(np.float32) * np.float32(scale)


@pytest.mark.parametrize("format", KINDS)
@pytest.mark.parametrize("scale", [1.0, 0.0371, 1e-30])
def test_round_minifloat_is_a_cast_that_saturates(format, scale):
    x = np.concatenate([dense(format), dense(format) * np.float32(scale)])
    same_bits(reference.round_minifloat(x, scale, format=format), rounded(x, scale, format))
    special = reference.round_minifloat(np.array([np.nan, np.inf, -np.inf], np.float32), 2.0, format=format)
    most = 2 * np.nanmax(reference.MINIFLOATS[format][np.isfinite(reference.MINIFLOATS[format])])
    same_bits(special, np.array([np.nan, most, -most], np.float32))


def rounding_model(format, opset):
    b = graphs.Builder(opset)
    y = b.op("RoundMiniFloat", b.input("X", ["n"]), b.input("scale", []), domain="onnxpress", format=format)
    body = functions.round_minifloat(format=format, opset=opset)
    y.producer().overload = body.overload
    b.output(y, ["n"])
    b.graph.opset_imports["onnxpress"] = 1
    model = b.model(10)
    model.functions[body.identifier()] = body
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


@pytest.mark.parametrize("opset", [functions.MIN_OPSET, 21])
@pytest.mark.parametrize("format", KINDS)
def test_body_of_round_minifloat_is_exact(format, opset):
    model = rounding_model(format, opset)
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        session = ort.InferenceSession(model, options(graph_optimization_level=level))
        for scale in (1.0, 0.0371, 1e-30):
            x = np.concatenate([dense(format), dense(format) * np.float32(scale), np.float32([np.inf, -np.inf])])
            (got,) = session.run(None, {"X": x, "scale": np.array(scale, np.float32)})
            np.testing.assert_array_equal(got, reference.round_minifloat(x, scale, format=format))
        assert np.isnan(session.run(None, {"X": np.float32([np.nan]), "scale": np.array(1, np.float32)})[0]).all()
