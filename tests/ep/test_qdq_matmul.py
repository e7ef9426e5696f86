"""QDQ groups around a product of 8-bit numbers as one node of the execution provider."""

from __future__ import annotations

import graphs
import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress import ep
from onnxpress.custom_ops import _kernels, reference
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from pairs import all_pairs
from sessions import KNOWS_WHO_RUNS_WHAT, options, taken

K, N = 70, 37
SCALE, OUTPUT_SCALE = np.float32(0.0173), np.float32(0.31)


def codes(rng, dtype, shape):
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


def make(
    *, activation="uint8", weight="int8", per="column", zero_points=False, layout="plain", op="MatMul", bias=None,
    then=None, rounds=False, output=None, rank=2, size=K, axis=None, alpha=1.0,
):  # fmt: skip
    """A model of one QDQ group, and what it means, in NumPy."""
    rng = np.random.default_rng(4)
    W = codes(rng, weight, (size, N))
    shape = (N,) if per == "column" else ()
    scales = rng.uniform(0.001, 0.01, shape).astype(np.float32)
    points = codes(rng, weight, shape) if zero_points else None
    zero_point = np.dtype(activation).type(-7 if activation == "int8" else 131)
    output_zero_point = np.dtype(output or "uint8").type(100)
    values = rng.standard_normal(N).astype(np.float32)
    integers = rng.integers(-(10**6), 10**6, N).astype(np.int32)
    if "int32" in (bias, then):
        values = integers.astype(np.float32) * np.float32(1e-6)

    b = graphs.Builder(21)
    dims = ["m"] + [3] * (rank - 2)
    a_type = ir.DataType.from_numpy(np.dtype(np.float32 if rounds else activation))
    x = b.input("A", [*dims, size], a_type)
    format_of_a = b.constant("a_scale", np.array(SCALE)), b.constant("a_zero", np.array(zero_point))
    if rounds:
        x = b.op("QuantizeLinear", x, *format_of_a, name="round")
    x = b.op("DequantizeLinear", x, *format_of_a, name="a")
    turned = layout != "plain"
    parts = [b.constant("codes", W.T.copy() if turned else W), b.constant("scales", scales)]
    if zero_points:
        parts.append(b.constant("points", points))
    w = b.op("DequantizeLinear", *parts, axis=axis if axis is not None else int(not turned), name="w")
    if layout == "Transpose":
        w = b.op("Transpose", w, perm=[1, 0])

    def bias_value(kind):
        if kind == "float":
            return b.constant("bias", values)
        return b.op("DequantizeLinear", b.constant("bias", integers), b.constant("bias_scale", np.float32(1e-6)))

    inputs = [x, w, *([bias_value(bias)] if bias else [])]
    attributes = {"transB": int(layout == "transB"), "alpha": alpha} if op == "Gemm" else {}
    y = b.op(op, *inputs, name="product", **attributes)
    if then:
        y = b.op("Add", y, bias_value(then), name="sum")
    if output:
        format_of_y = b.constant("y_scale", np.array(OUTPUT_SCALE)), b.constant("y_zero", np.array(output_zero_point))
        y = b.op("QuantizeLinear", y, *format_of_y, name="result")
    b.output(y, [*dims, N], ir.DataType.from_numpy(np.dtype(output or np.float32)))

    def meaning(A):
        rows = A.reshape(-1, size)
        result = reference.matmul_int8(
            reference.quantize_linear(rows, SCALE, zero_point) if rounds else rows, W,
            scale=SCALE, zero_point=int(zero_point), weight_scales=scales,
            weight_zero_points=points if zero_points else 0, bias=values if bias or then else None,
        )  # fmt: skip
        return result.reshape(*A.shape[:-1], N)

    def rounded(real):
        return reference.quantize_linear(real, OUTPUT_SCALE, output_zero_point) if output else real

    return ir.to_proto(b.model(10)).SerializeToString(), meaning, rounded


def activations(session, M, size=K):
    """For the model's only input."""
    (value,) = session.get_inputs()
    rng = np.random.default_rng(M)
    shape = [M, *value.shape[1:-1], size]
    if value.type == "tensor(float)":
        return rng.standard_normal(shape).astype(np.float32)
    return codes(rng, "int8" if "(int8)" in value.type else "uint8", shape)


ALL, NONE = ort.GraphOptimizationLevel.ORT_ENABLE_ALL, ort.GraphOptimizationLevel.ORT_DISABLE_ALL


def unoptimized(proto):
    return ort.InferenceSession(proto, options(graph_optimization_level=NONE), providers=["CPUExecutionProvider"])


def check(*, expected, level=ALL, given=None, **changes):
    """Exactly what the reference says, and what ONNX Runtime computes in float32 but for ties."""
    proto, meaning, rounded = make(**changes)
    session = ep.session(proto, options(graph_optimization_level=level), claim="qdq_matmul", **(given or {}))
    assert taken(session) in (sorted(expected), None)
    for M in (1, 5, 33):
        A = activations(session, M, changes.get("size", K))
        (got,), (stock,) = session.run(None, {"A": A}), unoptimized(proto).run(None, {"A": A})
        real = meaning(A)
        assert got.shape == stock.shape
        assert got.dtype == stock.dtype
        np.testing.assert_array_equal(got, rounded(real))
        if changes.get("output"):
            steps = real.astype(np.float64) / OUTPUT_SCALE
            sure = np.abs(steps - np.floor(steps) - 0.5) > 1e-3
            assert sure.mean() > 0.9
            np.testing.assert_array_equal(got[sure], stock[sure])
            assert np.abs(got.astype(int) - stock.astype(int)).max() <= 1
        else:
            np.testing.assert_allclose(got, stock, atol=1e-5 * np.abs(stock).max())


GROUP = ["DequantizeLinear", "DequantizeLinear", "MatMul"]
GEMM = ["DequantizeLinear", "DequantizeLinear", "Gemm"]


@all_pairs(
    {
        "activation": ["uint8", "int8"],
        "weight": ["uint8", "int8"],
        "per": ["column", "tensor"],
        "zero_points": [False, True],
        "output": [None, "uint8", "int8"],
    }
)
def test_types(activation, weight, per, zero_points, output):
    check(
        activation=activation, weight=weight, per=per, zero_points=zero_points, output=output,
        expected=GROUP + (["QuantizeLinear"] if output else []),
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["plain", "transB"])
@pytest.mark.parametrize("bias", [None, "float", "int32"])
def test_gemm(layout, bias):
    expected = GEMM + (["DequantizeLinear"] if bias == "int32" else [])
    # ONNX Runtime itself rounds a bias of float32 to int32.
    level = NONE if bias == "float" else ALL
    check(op="Gemm", layout=layout, bias=bias, output="uint8", level=level, expected=[*expected, "QuantizeLinear"])


def test_a_bias_that_onnx_runtime_rounds():
    proto, meaning, _ = make(op="Gemm", bias="float")
    session = ep.session(proto, options(), claim="qdq_matmul")
    assert taken(session) in (GEMM, sorted([*GEMM, "DequantizeLinear"]), None)
    A = activations(session, 5)
    np.testing.assert_allclose(session.run(None, {"A": A})[0], meaning(A), atol=SCALE * 0.01)  # a step of the bias


@pytest.mark.parametrize("per", ["column", "tensor"])
def test_transposed(per):
    # ONNX Runtime itself turns a weight, with the scales.
    check(layout="Transpose", per=per, zero_points=True, expected=GROUP)


@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("then", ["float", "int32"])
def test_a_bias_that_follows(rank, then):
    expected = [*GROUP, "Add", "QuantizeLinear"] + (["DequantizeLinear"] if then == "int32" else [])
    check(then=then, rank=rank, output="int8", level=NONE, expected=expected)
    if rank > 2:  # with two axes ONNX Runtime makes a Gemm of it before it asks
        check(then=then, rank=rank, output="int8", expected=expected)


@pytest.mark.parametrize("activation", ["uint8", "int8"])
def test_float_that_is_rounded_inside(activation):
    expected = [*GROUP, "QuantizeLinear", "QuantizeLinear"]
    check(rounds=True, activation=activation, output="uint8", expected=expected)


@pytest.mark.parametrize("size", [1, 3, 64, 65, 515])
def test_sizes(size):
    check(size=size, zero_points=True, output="uint8", expected=[*GROUP, "QuantizeLinear"])


@pytest.mark.parametrize("isa", _kernels.supported_isas())
def test_instruction_sets(isa):
    check(zero_points=True, rounds=True, bias=None, expected=[*GROUP, "QuantizeLinear"], given={"isa": isa})


def test_rows_of_any_rank():
    proto, meaning, _ = make()
    model = onnx.load_from_string(proto)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.ClearField("shape")
    session = ep.session(model.SerializeToString(), options(), claim="qdq_matmul")
    assert taken(session) in (GROUP, None)
    for shape in ((K,), (0, K), (5, K), (2, 0, K), (2, 3, K), (2, 1, 3, K)):
        A = codes(np.random.default_rng(0), "uint8", shape)
        (got,) = session.run(None, {"A": A})
        np.testing.assert_array_equal(got, meaning(A))
    with pytest.raises(Exception, match=f"'product'.*has shape .2, {K + 1}., its last size must be K={K}"):
        session.run(None, {"A": np.zeros((2, K + 1), np.uint8)})


def edited(change, **changes):
    model = onnx.load_from_string(make(**changes)[0])
    change(model.graph, {node.name: node for node in model.graph.node})
    return model.SerializeToString()


def to_input(graph, name):
    (tensor,) = (tensor for tensor in graph.initializer if tensor.name == name)
    graph.initializer.remove(tensor)
    graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))


def widen_activations(graph, _):
    graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT16
    (zero,) = (tensor for tensor in graph.initializer if tensor.name == "a_zero")
    zero.CopyFrom(onnx.numpy_helper.from_array(np.array(3, np.int16), "a_zero"))


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (edited(widen_activations), "DequantizeLinear node 'a': its format is not of 8 bits with one constant scale"),
        (edited(lambda g, _: to_input(g, "a_scale")), "'a': its format is not of 8 bits with one constant scale"),
        (edited(lambda g, _: to_input(g, "codes")), "DequantizeLinear node 'w': input x is no constant of this graph"),
        (make(size=N, axis=0)[0], "DequantizeLinear node 'w': axis 0 is not that of the columns"),
        (make(op="Gemm", alpha=2.0)[0], "Gemm node 'product': transA, alpha or beta is not the default"),
        (edited(lambda g, _: to_input(g, "bias"), op="Gemm", bias="float"), "input C is no constant bias of N values"),
    ],
)  # fmt: skip
def test_what_is_left(proto, reason, capfd):
    session = ep.session(proto, options(log_severity_level=1, graph_optimization_level=NONE), claim="qdq_matmul")
    (line,) = (line for line in capfd.readouterr().err.splitlines() if "left to others" in line)
    assert reason in line
    assert taken(session) in ([], None)


def test_constant_activations_are_left(capfd):
    proto = edited(lambda g, _: (g.initializer.append(onnx.numpy_helper.from_array(np.ones((2, K), np.uint8), "A")),
                                 g.input.pop()))  # fmt: skip
    session = ep.session(proto, options(log_severity_level=1, graph_optimization_level=NONE), claim="qdq_matmul")
    assert "its activations are constant" in capfd.readouterr().err
    np.testing.assert_allclose(session.run(None, {})[0], unoptimized(proto).run(None, {})[0])


def test_what_is_of_another_family(capfd):
    """Without this family in the option, the one before says why it takes no such product."""
    ep.session(make()[0], options(log_severity_level=1), claim="dequantized_matmul")
    assert "MatMul node 'product': both inputs are quantized" in capfd.readouterr().err


def test_a_weight_of_4_bits_is_of_another_family():
    b = graphs.Builder(21)
    rng = np.random.default_rng(0)
    A = codes(rng, "uint8", (3, 64))
    x = b.op("DequantizeLinear", b.input("A", ["m", 64], ir.DataType.UINT8), b.constant("a_scale", SCALE))
    W = rng.integers(0, 16, (64, N))
    parts = b.constant("W", W.astype(ml_dtypes.uint4)), b.constant("scale", np.float32(0.1))
    b.output(b.op("MatMul", x, b.op("DequantizeLinear", *parts)), ["m", N])
    session = ep.session(ir.to_proto(b.model(10)).SerializeToString(), options(), accuracy_level=0)
    assert taken(session) in (["DequantizeLinear", "MatMul"], None)
    want = A * SCALE @ (W * np.float32(0.1))
    np.testing.assert_allclose(session.run(None, {"A": A})[0], want, atol=1e-5 * np.abs(want).max())


@pytest.mark.skipif(not KNOWS_WHO_RUNS_WHAT, reason="ONNX Runtime 1.23 does not tell who runs what")
@pytest.mark.parametrize(("key", "value"), [("y_scale", "input"), ("a_zero", 3)])
def test_a_rounding_that_is_left(key, value):
    """A scale that comes in at run time; a QuantizeLinear whose DequantizeLinear has another zero point."""

    def change(graph, nodes):
        if value == "input":
            to_input(graph, key)
        else:
            graph.initializer.append(onnx.numpy_helper.from_array(np.uint8(value), "other"))
            nodes["round"].input[2] = "other"

    proto = edited(change, rounds=True, output="uint8")
    session = ep.session(proto, options(), claim="qdq_matmul")
    assert taken(session) == [*GROUP, "QuantizeLinear"]
    feeds = {"A": np.random.default_rng(0).standard_normal((5, K)).astype(np.float32)}
    if value == "input":
        feeds[key] = np.array(OUTPUT_SCALE)
    (got,), (want,) = session.run(None, feeds), unoptimized(proto).run(None, feeds)
    assert np.abs(got.astype(int) - want.astype(int)).max() <= 1


def test_a_product_that_nothing_reads():
    """Without optimizations, which would remove it."""
    proto = onnx.load_from_string(make()[0])
    unread = [onnx.NodeProto.FromString(node.SerializeToString()) for node in proto.graph.node]
    for node in unread:
        node.name += "_unread"
        node.output[0] += "_unread"
    unread[-1].input[:] = [name + "_unread" for name in unread[-1].input]
    proto.graph.node.extend(unread)
    session = ep.session(proto.SerializeToString(), options(graph_optimization_level=NONE), claim="qdq_matmul")
    assert taken(session) in (sorted(GROUP * 2), None)
    feeds = {"A": activations(session, 5)}
    np.testing.assert_array_equal(session.run(None, feeds)[0], make()[1](feeds["A"]))


def test_what_is_no_faster_is_left_unless_it_is_named(capfd):
    session = ep.session(make()[0], options(log_severity_level=1), isa="scalar")
    assert "MatMul node 'product': we are no faster on scalar" in capfd.readouterr().err
    assert taken(session) in ([], None)
    assert taken(ep.session(make()[0], options(), isa="scalar", claim="qdq_matmul")) in (GROUP, None)


def test_verify_reports_the_largest_error(capfd):
    for output in (None, "uint8"):
        proto, *_ = make(zero_points=True, rounds=True, output=output)
        session = ep.session(proto, options(log_severity_level=2), claim="qdq_matmul", verify=1)
        session.run(None, {"A": activations(session, 5)})
        (line,) = (line for line in capfd.readouterr().err.splitlines() if "verify: MatMul node 'product'" in line)
        words = line.split("largest error ")[1].replace(",", "").split()
        assert float(words[0]) <= (0 if output else 1e-6 * float(words[3]))


class Reader(CalibrationDataReader):
    def __init__(self, shape):
        rng = np.random.default_rng(1)
        self.left = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(3)]

    def get_next(self):
        return self.left.pop() if self.left else None


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("activation", [QuantType.QUInt8, QuantType.QInt8])
def test_models_of_onnx_runtime(per_channel, activation, tmp_path):
    """Two products of three axes, then one after a Relu; the input is rounded once for two."""
    b = graphs.Builder(17)
    x = b.input("x", ["m", 3, 64])
    first, second = (b.op("MatMul", x, b.constant(name, graphs.weight(64, 48, seed))) for seed, name in enumerate("UV"))
    hidden = b.op("Relu", b.op("Add", first, b.constant("bias", graphs.weight(1, 48, 3)[0])))
    b.output(b.op("MatMul", hidden, b.constant("W", graphs.weight(48, 40, 2))), ["m", 3, 40])
    b.output(second, ["m", 3, 48])
    ir.save(b.model(8), tmp_path / "model.onnx")
    quantize_static(
        tmp_path / "model.onnx", tmp_path / "out.onnx", Reader((5, 3, 64)), quant_format=QuantFormat.QDQ,
        per_channel=per_channel, activation_type=activation, weight_type=QuantType.QInt8,
    )  # fmt: skip
    session = ep.session(tmp_path / "out.onnx", options(), claim="qdq_matmul")
    operators = taken(session)
    assert operators is None or [operators.count(name) for name in ("MatMul", "DequantizeLinear")] == [3, 6]
    feeds = {"x": np.random.default_rng(2).standard_normal((7, 3, 64)).astype(np.float32)}
    for got, want in zip(session.run(None, feeds), unoptimized(tmp_path / "out.onnx").run(None, feeds), strict=True):
        assert np.abs(got - want).max() < 0.02 * np.abs(want).max()  # two steps of 255
        assert (got == want).mean() > 0.99
