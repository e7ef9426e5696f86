"""Products of 8-bit activations and an 8-bit weight: equal to the reference bit for bit on every instruction set."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from isas import ISAS, best_kernels
from onnx import TensorProto, helper
from onnxpress.custom_ops import _kernels, reference
from pairs import all_pairs

ROWS = [*range(1, 8), 15, 16, 17, 33, 70]
DEPTHS = [1, 3, 4, 5, 31, 63, 64, 65, 127, 128, 129, 300]
COLUMNS = [1, 15, 16, 17, 33, 100]


def codes_of(rng, shape, signed, extreme=False):
    bounds = np.iinfo(np.int8 if signed else np.uint8)
    if extreme:
        return rng.choice(np.array([bounds.min, bounds.max], bounds.dtype), shape)
    return rng.integers(bounds.min, bounds.max + 1, shape, dtype=bounds.dtype)


def check(isa, A, W, zero_points, scales, bias, scale, zero_point, transposed=False, output=None):
    """One product by the kernel and by the reference; `A` of floats is rounded by the reference too."""
    M, N = A.shape[0], W.shape[1]
    zero_point = np.asarray(zero_point)
    codes = reference.quantize_linear(A, scale, zero_point) if A.dtype == np.float32 else A
    want = reference.matmul_int8(
        codes, W, scale=scale, zero_point=int(zero_point), bias=bias,
        weight_scales=1.0 if scales is None else scales, weight_zero_points=0 if zero_points is None else zero_points,
    )  # fmt: skip
    if output is not None:
        want = reference.quantize_linear(want, output[0], np.asarray(output[1]))
    got, ran = _kernels.matmul_int8(
        A, np.ascontiguousarray(W.T) if transposed else W, zero_points, scales, bias,
        a_format=(scale, int(zero_point), zero_point.dtype == np.int8),
        y_format=None if output is None else (output[0], int(output[1]), output[1].dtype == np.int8),
        transposed=transposed, isa=isa,
    )  # fmt: skip
    # Few rows would leave tiles idle.
    assert ran == best_kernels(isa, "int8", but=() if M >= 8 else ("amx",))
    assert got.shape == (M, N)
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("M", ROWS)
def test_awkward_shapes(isa, M):
    """Every depth with every number of columns; what else can vary varies along."""
    rng = np.random.default_rng(M)
    for i, K in enumerate(DEPTHS):
        for j, N in enumerate(COLUMNS):
            signed, weight_signed = bool((i + j) & 1), bool((i + j) & 2)
            A, W = codes_of(rng, (M, K), signed), codes_of(rng, (K, N), weight_signed)
            zero_points = [None, codes_of(rng, 1, weight_signed), codes_of(rng, N, weight_signed)][(i + M) % 3]
            scales = [None, np.float32([0.25]), rng.uniform(0.5, 2, N).astype(np.float32)][j % 3]
            bias = rng.standard_normal(N).astype(np.float32) * 100 if (i + M) % 2 else None
            check(isa, A, W, zero_points, scales, bias, 0.37, codes_of(rng, 1, signed)[0], transposed=bool(j % 2))


@all_pairs(
    {
        "isa": ISAS,
        "M": [1, 5, 40],
        "signed": [False, True],
        "weight_signed": [False, True],
        "output": [None, np.uint8(131), np.int8(-7), np.uint8(0), np.int8(127)],
    }
)
def test_floats_in_and_codes_out(isa, M, signed, weight_signed, output):
    rng = np.random.default_rng(0)
    for K, N, points in [(77, 37, "each"), (128, 32, "one"), (200, 50, None)]:
        A = rng.standard_normal((M, K)).astype(np.float32)
        W = codes_of(rng, (K, N), weight_signed)
        zero_points = None if points is None else codes_of(rng, N if points == "each" else 1, weight_signed)
        scales = rng.uniform(0.001, 0.01, N).astype(np.float32)
        bias = rng.standard_normal(N).astype(np.float32)
        zero_point = codes_of(rng, 1, signed)[0]
        scale = 0.05 if output is None else 0.3
        check(
            isa, A, W, zero_points, scales, bias, 0.017, zero_point, output=None if output is None else (scale, output)
        )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("M", [1, 4, 33])
def test_extreme_codes_do_not_saturate(isa, M):
    """All codes at the ends of their ranges, all of the same sign and mixed: the worst case of sums of 16 bits."""
    rng = np.random.default_rng(0)
    for a, w in [(255, -128), (255, 127), (0, -128)]:
        A, W = np.full((M, 513), a, np.uint8), np.full((513, 40), w, np.int8)
        for zero_point in (0, 255):
            check(isa, A, W, None, None, None, 1.0, np.uint8(zero_point))
            check(isa, A, W, np.int8([127]), None, None, 1.0, np.uint8(zero_point))
    for signed in (False, True):
        for weight_signed in (False, True):
            A, W = codes_of(rng, (M, 515), signed, True), codes_of(rng, (515, 35), weight_signed, True)
            zero_points = codes_of(rng, 35, weight_signed, True)
            check(isa, A, W, zero_points, None, None, 1.0, codes_of(rng, 1, signed, True)[0])


@all_pairs({"isa": ISAS, "M": [1, 9], "K": [33025, 33026, 65793, 65794, 70001], "transposed": [False, True]})
def test_sums_beyond_int32(isa, M, K, transposed):
    """The largest sums that there are, and what the true ones are."""
    rng, bias = np.random.default_rng(0), np.float32([3, -5, 7])
    for W, points in [
        (np.full((K, 3), -128, np.int8), None),
        (np.full((K, 3), 0, np.uint8), np.uint8([255, 250, 255])),
        (codes_of(rng, (K, 3), False), np.uint8([0, 128, 255])),
    ]:
        codes = np.full((M, K), 255, np.uint8)
        check(isa, codes, W, points, np.float32([2, 3, 0.5]), bias, 0.5, np.uint8(0), transposed=transposed)
        output = (1e6, np.int8(3))
        check(isa, codes, W, points, None, bias, 0.5, np.uint8(1), transposed=transposed, output=output)
        floats = rng.standard_normal((M, K), np.float32)
        check(isa, floats, W, points, None, bias, 0.01, np.int8(-128), transposed=transposed)
        sums = codes.astype(np.float64) @ (W.astype(np.float64) - (0 if points is None else points))
        got, _ = _kernels.matmul_int8(codes, W, points, None, None, a_format=(1.0, 0, False), isa=isa)
        np.testing.assert_allclose(got, sums, rtol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_rows_in_chunks(isa):
    """More than are computed at once; each row is as if it came alone."""
    rng = np.random.default_rng(0)
    A, W = codes_of(rng, (9000, 1000), False), codes_of(rng, (1000, 9), True)
    check(isa, A, W, codes_of(rng, 9, True), None, None, 0.01, np.uint8(7))


@pytest.mark.parametrize("isa", ISAS)
def test_long_and_wide(isa):
    """Several tasks: more tiles than one takes, and more rows."""
    rng = np.random.default_rng(0)
    for M, K, N in [(1, 2000, 600), (100, 1030, 150), (300, 70, 80)]:
        A, W = codes_of(rng, (M, K), False), codes_of(rng, (K, N), True)
        check(isa, A, W, codes_of(rng, N, True), None, None, 0.01, np.uint8(7))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("N", [16384, 16400, 16385])
def test_outputs_beyond_the_caches(isa, N):
    """Which may take another way to memory where they lie in whole lines."""
    rng = np.random.default_rng(0)
    A, W = codes_of(rng, (65, 5), False), codes_of(rng, (5, N), True)
    check(isa, A, W, None, None, rng.standard_normal(N).astype(np.float32), 0.01, np.uint8(7))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scale", [0.1, 1.0, -0.3, 3e-39, 1e-45, 3e38, np.inf, 0.0])
def test_rounding_is_that_of_a_division(isa, scale):
    """Ties, numbers next to ties, infinities and NaN, which reach the outputs as the bias of a product of zeros."""
    rng = np.random.default_rng(0)
    with np.errstate(over="ignore", invalid="ignore"):
        ties = ((np.arange(-300, 300) + 0.5) * np.float32(scale)).astype(np.float32)
        near = [ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf))]
    special = np.float32([np.inf, -np.inf, np.nan, 0, -0.0, 1e38, -1e38, 1e-45, 1e-38])
    values = np.concatenate([*near, special, rng.standard_normal(100).astype(np.float32)])
    for zero_point in (np.uint8(0), np.uint8(128), np.int8(-128), np.int8(127)):
        for M in (1, 8):
            W = np.zeros((4, values.size), np.int8)
            check(isa, np.zeros((M, 4), np.uint8), W, None, None, values, 1.0, np.uint8(0), False, (scale, zero_point))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scale", [0.1, 1.0, -0.3])
def test_activations_are_rounded_as_outputs_are(isa, scale):
    ties = ((np.arange(-300, 300) + 0.5) * np.float32(scale)).astype(np.float32)
    A = np.concatenate([ties, np.float32([np.inf, -np.inf, np.nan, 0])]).reshape(4, -1)
    for zero_point in (np.uint8(9), np.int8(-128)):
        check(isa, A, np.eye(A.shape[1], dtype=np.int8), None, None, None, scale, zero_point)


INPUTS = [
    np.zeros(5),
    np.full(7, 3.0),
    np.full(7, -3.0),
    [np.inf, 1, -1],
    [-np.inf, 1, 2],
    [np.inf, -np.inf, 0],
    [1e-45, 0],
    [-1e-45],
    [3.4e38, -3.4e38],
    [],
]


@pytest.mark.parametrize("isa", ISAS)
def test_dynamic_format(isa):
    rng = np.random.default_rng(0)
    random = [rng.standard_normal(n) * s + m for n in (1, 7, 15, 16, 17, 100, 70000) for s in (1, 1e-3) for m in (0, 9)]
    for values in [*INPUTS, *random]:
        x = np.asarray(values, np.float32)
        _, scale, zero_point = reference.dynamic_quantize_linear(x)
        assert _kernels.dynamic_format(x, isa=isa) == (scale, zero_point)


def test_reference_is_what_onnx_runtime_computes():
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "scale", "zero_point"])
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.UINT8, ["n"]),
        helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
        helper.make_tensor_value_info("zero_point", TensorProto.UINT8, []),
    ]
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert onnx.checker.check_model(model) is None
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for values in [*INPUTS[:-1], *(rng.standard_normal(n) * 3 for n in range(1, 70))]:
        x = np.asarray(values, np.float32)
        for got, want in zip(session.run(None, {"x": x}), reference.dynamic_quantize_linear(x), strict=True):
            np.testing.assert_array_equal(got, want)


def test_no_rows():
    got, _ = _kernels.matmul_int8(
        np.zeros((0, 3), np.uint8), np.zeros((3, 5), np.int8), None, None, None, a_format=(1, 0, False)
    )
    assert got.shape == (0, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": np.zeros((2, 4), np.uint8)}, "A has the wrong shape"),
        ({"A": np.zeros((2, 3), np.int8)}, "A must be float32 or of the type of a_format"),
        ({"weight": np.zeros((3, 5), np.int32)}, "weight must be int8 or uint8"),
        ({"weight": np.zeros((5, 3), np.int8).T}, "weight must be C-contiguous"),
        ({"zero_points": np.zeros(5, np.uint8)}, "zero_points must have the type of weight"),
        ({"zero_points": np.zeros(4, np.int8)}, "zero_points has the wrong shape"),
        ({"scales": np.zeros(4, np.float32)}, "scales has the wrong shape"),
        ({"bias": np.zeros(4, np.float32)}, "bias has the wrong shape"),
        ({"a_format": (1, 256, False)}, "zero point out of range"),
        ({"y_format": (1, 128, True)}, "zero point out of range"),
        ({"isa": "sse9"}, "unknown instruction set"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {
        "A": np.zeros((2, 3), np.uint8), "weight": np.zeros((3, 5), np.int8), "zero_points": None, "scales": None,
        "bias": None, "a_format": (1, 0, False), **change,
    }  # fmt: skip
    with pytest.raises((ValueError, RuntimeError), match=message):
        _kernels.matmul_int8(**arguments)
