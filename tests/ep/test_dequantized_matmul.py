"""DequantizeLinear of a constant weight, then MatMul or Gemm, as one node of the execution provider."""

from __future__ import annotations

import graphs
import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress import ep
from pairs import all_pairs
from sessions import KNOWS_WHO_RUNS_WHAT, options, taken

K, N = 96, 37
RANGES = {"int4": (-8, 8), "uint4": (0, 16), "int8": (-128, 128), "uint8": (0, 256)}


def make(
    *, dtype="int4", block_size=32, layout="plain", zero_points=False, per="block", op="MatMul", bias=None, then=(),
    scale=np.float32, size=K, columns=N, axis=None, rank=2,
    activation=None,
):  # fmt: skip
    """A model of one product and its weight [K, N] in float32."""
    rng = np.random.default_rng(3)
    low, high = RANGES[dtype]
    kind = getattr(ml_dtypes, dtype) if dtype.endswith("4") else np.dtype(dtype)
    codes = rng.integers(low, high, (size, columns))
    rows = {"block": -(-size // block_size), "column": 1, "tensor": 1}[per]
    shape = (rows, 1 if per == "tensor" else columns)
    scales = rng.uniform(0.01, 0.02, shape).astype(scale)
    points = rng.integers(low, high, shape)
    spread = {"block": block_size, "column": size, "tensor": size}[per]

    def whole(values):
        return np.broadcast_to(np.repeat(values, spread, axis=0)[:size], (size, columns))

    W = ((codes - (whole(points) if zero_points else 0)) * whole(scales.astype(np.float32))).astype(np.float32)
    turned = layout != "plain"
    stored = [values.T if turned else values for values in (codes, scales, points)]
    if per != "block":
        stored[1:] = [values.reshape(-1) if per == "column" else values.reshape(()) for values in stored[1:]]
    b = graphs.Builder(23 if activation else 21)
    kind_of_a = ir.DataType.from_numpy(np.dtype(activation or scale))
    x = b.input("A", ["m"] + [3] * (rank - 2) + [size], kind_of_a)
    attributes = {"axis": int(turned) if per == "block" else int(not turned)}
    if axis is not None:
        attributes["axis"] = axis
    if per == "block":
        attributes["block_size"] = block_size
    if activation is not None:
        attributes["output_dtype"] = int(kind_of_a)
    parts = [b.constant("codes", stored[0].astype(kind)), b.constant("scales", np.ascontiguousarray(stored[1]))]
    if zero_points:
        parts.append(b.constant("points", stored[2].astype(kind)))
    w = b.op("DequantizeLinear", *parts, **attributes)
    if layout == "Transpose":
        w = b.op("Transpose", w, perm=[1, 0])
    inputs = [x, w]
    if bias:
        inputs.append(b.constant("bias", rng.standard_normal(columns).astype(scale)))
    y = b.op(op, *inputs, **({"transB": 1} if layout == "transB" else {}))
    for name in then:
        other = (
            [b.constant(f"added{len(b.graph)}", rng.standard_normal(columns).astype(scale))] if name == "Add" else []
        )
        y = b.op(name, y, *other)
    b.output(y, ["m"] + [3] * (rank - 2) + [columns], kind_of_a)
    return b.model(11 if activation else 10), W


def check(model, W, *, expected, dtype=np.float32, tolerance=1e-5, rank=2, **given):
    """Against stock ONNX Runtime without its optimizations, which computes what the nodes say."""
    proto = ir.to_proto(model).SerializeToString()
    chosen = options()
    chosen.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")  # of what is left to ONNX Runtime
    session = ep.session(proto, chosen, accuracy_level=0, **given)
    assert taken(session) in (expected, None)
    plain = options(graph_optimization_level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    stock = ort.InferenceSession(proto, plain, providers=["CPUExecutionProvider"])
    for M in (1, 7):
        shape = (M,) + (3,) * (rank - 2) + (W.shape[0],)
        A = np.random.default_rng(M).standard_normal(shape).astype(dtype)
        (got,), (want,) = session.run(None, {"A": A}), stock.run(None, {"A": A})
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, atol=tolerance * np.abs(A.astype(np.float32) @ W).max())


BOTH = ["DequantizeLinear", "MatMul"]


@all_pairs({"dtype": list(RANGES), "block_size": [16, 32, 48, 80, 96, 128], "zero_points": [False, True]})
def test_blocks(dtype, block_size, zero_points):
    check(*make(dtype=dtype, block_size=block_size, zero_points=zero_points), expected=BOTH)


@all_pairs(
    {
        "dtype": list(RANGES),
        "layout": ["plain", "Transpose"],
        "size,columns": [(96, 48), (100, 50), (101, 33), (33, 16), (1056, 160)],
    }
)
def test_layouts(dtype, layout, size, columns):
    """Whole tiles and spans, parts of them, and columns and rows of 4 bits that begin in the middle of a byte."""
    model = make(dtype=dtype, layout=layout, size=size, columns=columns, zero_points=True)
    check(*model, expected=BOTH if layout == "plain" else [*BOTH, "Transpose"])


@pytest.mark.parametrize(
    ("scale", "activation"),
    [
        (ml_dtypes.bfloat16, np.float32),
        (np.float16, np.float32),
        (np.float32, np.float16),
        (ml_dtypes.bfloat16, np.float16),
    ],
)
@pytest.mark.parametrize("dtype", ["int4", "uint8"])
def test_scales_of_another_type(scale, activation, dtype):
    """Against NumPy: ONNX Runtime itself has no such DequantizeLinear or makes a wrong node of it."""
    model, W = make(scale=scale, activation=activation, dtype=dtype, zero_points=True)
    session = ep.session(ir.to_proto(model).SerializeToString(), options(), accuracy_level=0)
    assert taken(session) in (BOTH, None)
    A = np.random.default_rng(0).standard_normal((3, K)).astype(activation)
    (got,) = session.run(None, {"A": A})
    want = A.astype(np.float32) @ W
    np.testing.assert_allclose(got, want, atol=(1e-5 if activation == np.float32 else 1e-3) * np.abs(want).max())


@pytest.mark.parametrize("size", [512, 1536, 300])
@pytest.mark.parametrize("block_size", [128, 256, 512, 768])
def test_blocks_longer_than_those_of_the_kernels(size, block_size):
    check(*make(size=size, block_size=block_size, zero_points=True), expected=BOTH)


@all_pairs(
    {"dtype": ["int8", "uint8"], "per": ["column", "tensor"], "zero_points": [False, True], "size": [96, 100, 896]}
)
def test_one_scale_a_column_or_for_all(dtype, per, zero_points, size):
    check(*make(dtype=dtype, per=per, zero_points=zero_points, size=size), expected=BOTH)


@pytest.mark.parametrize("per", ["block", "column"])
@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_transposed(per, dtype):
    model = make(dtype=dtype, per=per, layout="Transpose", zero_points=True)
    # ONNX Runtime itself turns a weight with a scale a column.
    check(*model, expected=BOTH if per == "column" else [*BOTH, "Transpose"])


@pytest.mark.parametrize("layout", ["plain", "transB"])
@pytest.mark.parametrize("bias", [False, True])
def test_gemm(layout, bias):
    check(*make(op="Gemm", layout=layout, bias=bias), expected=["DequantizeLinear", "Gemm"])


def test_float16():
    check(*make(scale=np.float16), dtype=np.float16, tolerance=2e-3, expected=BOTH)


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_a_bias_that_follows(rank):
    # With two axes ONNX Runtime has made a Gemm of it before it asks.
    expected = ["DequantizeLinear", "Gemm"] if rank == 2 else ["Add", *BOTH]
    check(*make(then=("Add",), rank=rank), rank=rank, expected=expected)


def test_what_follows_beyond_a_bias_and_an_activation_is_left():
    check(*make(then=("Add", "Relu", "Add"), rank=3), rank=3, expected=["Add", *BOTH, "Relu"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"block_size": 24, "size": 96}, "block_size 24 is no multiple of 16"),
        ({"per": "tensor", "axis": -3}, "axis -3 is none of a matrix"),
        ({"per": "column", "dtype": "int8", "size": N, "axis": 0}, "neither one for all, one a column nor in blocks"),
    ],
)
def test_what_is_left(changes, reason, capfd):
    model, W = make(**changes)
    proto = ir.to_proto(model).SerializeToString()
    ep.session(proto, options(log_severity_level=1))
    assert "left to others: DequantizeLinear node 'DequantizeLinear_0': " in (err := capfd.readouterr().err), err
    assert reason in err
    if "axis" not in changes:
        check(model, W, expected=[])


def test_a_weight_with_a_second_reader_is_left_or_duplicated():
    """ONNX Runtime gives every reader a DequantizeLinear of its own; without that the node is left alone."""
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        model, W = make()
        node = model.graph[1]
        again = ir.node("Add", [node.outputs[0], node.outputs[0]], name="again")
        again.outputs[0].name = "twice"
        model.graph.append(again)
        second = ir.node("MatMul", [model.graph.inputs[0], node.inputs[1]], name="second")
        second.outputs[0].name = "y2"
        second.outputs[0].type, second.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["m", N])
        model.graph.append(second)
        model.graph.outputs.append(second.outputs[0])
        A = np.random.default_rng(0).standard_normal((3, K)).astype(np.float32)
        proto = ir.to_proto(model).SerializeToString()
        session = ep.session(proto, options(graph_optimization_level=level), accuracy_level=0)
        for got in session.run(None, {"A": A}):
            np.testing.assert_allclose(got, A @ W, atol=1e-5 * np.abs(A @ W).max())


def test_level_is_that_of_onnx_runtime():
    """Activations are rounded where ONNX Runtime would round them, and not where it was told to leave them."""
    model, W = make()
    proto = ir.to_proto(model).SerializeToString()
    A = np.random.default_rng(0).standard_normal((5, K)).astype(np.float32)
    errors = {}
    for level in ("0", "4"):
        chosen = options()
        chosen.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
        (got,) = ep.session(proto, chosen).run(None, {"A": A})
        errors[level] = np.abs(got - A @ W).max() / np.abs(A @ W).max()
    assert errors["0"] < 1e-5 < 1e-4 < errors["4"] < 0.02


@pytest.mark.skipif(not KNOWS_WHO_RUNS_WHAT, reason="ONNX Runtime 1.23 does not tell who runs what")
@pytest.mark.parametrize(("claim", "expected"), [("dequantized_matmul", BOTH), ("matmul_nbits", [])])
def test_claim(claim, expected):
    model, W = make()
    check(model, W, expected=expected, claim=claim)


def test_verify_reports_the_largest_error(capfd):
    model, _ = make(zero_points=True, bias=True, op="Gemm")
    proto = ir.to_proto(model).SerializeToString()
    session = ep.session(proto, options(log_severity_level=2), accuracy_level=4, verify=1)
    A = np.random.default_rng(0).standard_normal((5, K)).astype(np.float32)
    session.run(None, {"A": A})
    session.run(None, {"A": A})
    err = capfd.readouterr().err
    (line,) = (line for line in err.splitlines() if "verify: Gemm node" in line)  # the second run brings no larger one
    words = line.split("largest error ")[1].removesuffix("\x1b[m").replace(",", "").split()
    error, output, run = float(words[0]), float(words[3]), int(words[6])
    assert run == 1
    assert 1e-4 < error / output < 0.02  # what rounding activations to int8 costs
