"""Products of activations that are rounded at run time, as one node of the execution provider."""

from __future__ import annotations

import graphs
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress import ep
from onnxpress.custom_ops import _kernels, reference
from onnxpress.optimizer import compile_context
from onnxpress.optimizer.runtime.machine import products_saturate
from onnxruntime.quantization import QuantType, quantize_dynamic
from sessions import KNOWS_WHO_RUNS_WHAT, options, taken

K, N = 70, 37
CHAIN = ["Cast", "MatMulInteger", "Mul", "Mul"]
WHOLE = [*CHAIN, "DynamicQuantizeLinear"]


def codes(rng, dtype, shape, narrow=False):
    """Of the whole range, or those of int8 with which ONNX Runtime's sums of products by uint8 saturate on no CPU."""
    info = np.iinfo(dtype)
    low, high = (-64, 63) if narrow and dtype == "int8" else (info.min, info.max)
    return rng.integers(low, high + 1, shape).astype(dtype)


class Model:
    """Products that share their rounded activations, and what they mean."""

    def __init__(
        self, *, form="chain", weight="int8", per="column", zero_points=True, products=1, bias=None, rank=2, size=K,
        order="scales first", activation="uint8", narrow=False,
    ):  # fmt: skip
        self.rng, self.narrow = np.random.default_rng(4), narrow
        self.weight, self.per, self.zero_points, self.size = weight, per, zero_points, size
        self.form, self.bias, self.order = form, bias, order
        self.parts: list[tuple] = []
        b = self.b = graphs.Builder(17)
        self.dims = ["m"] + [3] * (rank - 2)
        if form in ("chain", "dynamic_quantize_matmul"):
            x = b.input("A", [*self.dims, size])
        if form == "chain":
            x = b.op("DynamicQuantizeLinear", x, outputs=3, name="round")
        elif form == "matmul_integer_to_float":
            kind = ir.DataType.from_numpy(np.dtype(activation))
            x = b.input("A", [*self.dims, size], kind), b.input("scale", []), b.input("zero", [], kind)
        for index in range(products):
            b.output(getattr(self, form)(index, x), [*self.dims, N])
        b.graph.opset_imports["com.microsoft"] = 1
        self.proto = ir.to_proto(b.model(9)).SerializeToString()

    def constants(self, index):
        shape = () if self.per == "tensor" else (N,)
        W = codes(self.rng, self.weight, (self.size, N), self.narrow)
        points = codes(self.rng, self.weight, shape)
        scales = self.rng.uniform(0.001, 0.01, (1, N) if self.per == "row" else shape).astype(np.float32)
        bias = self.rng.standard_normal(N).astype(np.float32)
        self.parts.append((W, scales, points if self.zero_points else 0, bias if self.bias else None))
        named = {"W": W, "scales": scales, "points": points, "bias": bias}
        made = {name: self.b.constant(f"{name}{index}", array) for name, array in named.items()}
        return [made["W"], made["scales"], made["points"] if self.zero_points else None, made["bias"]]

    def added(self, y, bias, index):
        return self.b.op("Add", bias, y, name=f"sum{index}") if self.bias else y

    def chain(self, index, x):
        b, (a, scale, zero) = self.b, x
        W, scales, points, bias = self.constants(index)
        y = b.op("MatMulInteger", a, W, zero, points, name=f"product{index}")
        y = b.op("Cast", y, to=int(ir.DataType.FLOAT))
        if self.order == "scales first":
            y = b.op("Mul", y, b.op("Mul", scale, scales))
        elif self.order == "turned":
            y = b.op("Mul", b.op("Mul", scales, scale), y)
        else:
            y = b.op("Mul", b.op("Mul", scale, y), scales)
        return self.added(y, bias, index)

    def dynamic_quantize_matmul(self, index, x):
        W, scales, points, bias = self.constants(index)
        inputs = x, W, scales, points, *([bias] if self.bias == "own" else [])
        y = self.b.op("DynamicQuantizeMatMul", *inputs, domain="com.microsoft", name=f"product{index}")
        return y if self.bias == "own" else self.added(y, bias, index)

    def matmul_integer_to_float(self, index, x):
        W, scales, points, bias = self.constants(index)
        a, scale, zero = x
        inputs = a, W, scale, scales, zero, points, *([bias] if self.bias == "own" else [])
        y = self.b.op("MatMulIntegerToFloat", *inputs, domain="com.microsoft", name=f"product{index}")
        return y if self.bias == "own" else self.added(y, bias, index)

    def feeds(self, M):
        rng = np.random.default_rng(M)
        shape = [M, *self.dims[1:], self.size]
        if self.form != "matmul_integer_to_float":
            return {"A": rng.standard_normal(shape).astype(np.float32)}
        kind = self.b.graph.inputs[0].dtype.numpy()
        return {"A": codes(rng, kind, shape), "scale": np.array(0.013, np.float32), "zero": codes(rng, kind, ())}

    def meaning(self, feeds):
        A = feeds["A"]
        if self.form == "matmul_integer_to_float":
            rounded, scale, zero = A, feeds["scale"], feeds["zero"]
        else:
            rounded, scale, zero = reference.dynamic_quantize_linear(A)
        rows = rounded.reshape(-1, self.size)
        for W, scales, points, bias in self.parts:
            y = reference.matmul_int8(
                rows, W, scale=scale, zero_point=int(zero), weight_scales=scales, weight_zero_points=points, bias=bias
            )
            yield y.reshape(*A.shape[:-1], N)


def unoptimized(proto):
    chosen = options(graph_optimization_level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    return ort.InferenceSession(proto, chosen, providers=["CPUExecutionProvider"])


def check(expected, *, exact=True, given=None, **changes):
    """What the reference says, bit by bit, and what ONNX Runtime computes where its sums cannot saturate."""
    for narrow in (False, True):
        model = Model(narrow=narrow, **changes)
        session = ep.session(model.proto, options(), claim="dynamic_matmul", **(given or {}))
        assert taken(session) in (sorted(expected), None)
        for M in (1, 5, 33):
            feeds = model.feeds(M)
            wanted = list(model.meaning(feeds))
            for got, want in zip(session.run(None, feeds), wanted, strict=True):
                assert got.dtype == np.float32
                if exact:
                    np.testing.assert_array_equal(got, want)
                np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
            if narrow or not products_saturate():
                for want, other in zip(wanted, unoptimized(model.proto).run(None, feeds), strict=True):
                    np.testing.assert_allclose(want, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("isa", _kernels.supported_isas())
def test_exact_where_onnx_runtime_saturates(isa):
    """The largest codes there are: sums of two products are beyond int16."""
    b = graphs.Builder(17)
    x = b.op("DynamicQuantizeLinear", b.input("A", ["m", 64]), outputs=3)
    y = b.op("Cast", b.op("MatMulInteger", x[0], b.constant("W", np.full((64, 48), 127, np.int8)), x[2]), to=1)
    b.output(b.op("Mul", y, b.op("Mul", x[1], b.constant("scale", np.float32(0.01)))), ["m", 48])
    proto = ir.to_proto(b.model(9)).SerializeToString()
    A = np.ones((3, 64), np.float32)
    want = np.full((3, 48), 64 * 127 * 0.01)
    session = ep.session(proto, options(), claim="dynamic_matmul", isa=isa)
    assert taken(session) in (sorted(WHOLE), None)
    np.testing.assert_allclose(session.run(None, {"A": A})[0], want, rtol=1e-5)
    stock = ort.InferenceSession(proto, options(), providers=["CPUExecutionProvider"]).run(None, {"A": A})[0]
    assert np.allclose(stock, want, rtol=1e-5) is not products_saturate()


@pytest.mark.parametrize("weight", ["int8", "uint8"])
@pytest.mark.parametrize("per", ["column", "tensor"])
@pytest.mark.parametrize("zero_points", [False, True])
def test_types(weight, per, zero_points):
    check(WHOLE, weight=weight, per=per, zero_points=zero_points)


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_a_bias_that_follows(rank):
    check([*WHOLE, "Add"], rank=rank, bias="after")


@pytest.mark.parametrize("order", ["scales first", "turned", "one by one"])
@pytest.mark.parametrize("per", ["column", "tensor", "row"])
def test_orders_of_the_scales(order, per):
    # One by one, a result is rounded twice where the kernel rounds once.
    check([*WHOLE, "Add"], order=order, per=per, bias="after", exact=order != "one by one")


def test_a_row_of_scales_that_may_add_an_axis():
    """Where nobody knows how many the product has, it multiplies what was computed."""
    model = Model(per="row")
    proto = onnx.load_from_string(model.proto)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.ClearField("shape")
    session = ep.session(proto.SerializeToString(), options(), claim="dynamic_matmul")
    assert taken(session) in (["Cast", "MatMulInteger"], None)
    for M in (1, 5):
        feeds = model.feeds(M)
        np.testing.assert_allclose(session.run(None, feeds)[0], next(model.meaning(feeds)), rtol=1e-6, atol=1e-6)


def test_several_products_of_the_same_activations():
    check([*CHAIN, "Add"] * 3, products=3, bias="after")


@pytest.mark.parametrize("size", [1, 3, 64, 65, 515])
def test_sizes(size):
    check(WHOLE, size=size)


@pytest.mark.parametrize("isa", _kernels.supported_isas())
def test_instruction_sets(isa):
    check(WHOLE, given={"isa": isa})


@pytest.mark.parametrize("weight", ["int8", "uint8"])
@pytest.mark.parametrize("per", ["column", "tensor"])
@pytest.mark.parametrize("bias", [None, "own", "after"])
def test_dynamic_quantize_matmul(weight, per, bias):
    expected = ["DynamicQuantizeMatMul", *(["Add"] if bias == "after" else [])]
    check(expected, form="dynamic_quantize_matmul", weight=weight, per=per, bias=bias)


# ONNX Runtime has none of int8 and uint8 to compare with.
@pytest.mark.parametrize(("activation", "weight"), [("uint8", "int8"), ("uint8", "uint8"), ("int8", "int8")])
@pytest.mark.parametrize("bias", [None, "own", "after"])
def test_matmul_integer_to_float(activation, weight, bias):
    expected = ["MatMulIntegerToFloat", *(["Add"] if bias == "after" else [])]
    check(expected, form="matmul_integer_to_float", activation=activation, weight=weight, bias=bias)


def test_activations_without_range():
    model = Model()
    session = ep.session(model.proto, options(), claim="dynamic_matmul")
    for value in (0, 3, -3):
        feeds = {"A": np.full((4, K), value, np.float32)}
        np.testing.assert_array_equal(session.run(None, feeds)[0], next(model.meaning(feeds)))


def test_rows_of_any_rank():
    model = Model(bias="after")
    proto = onnx.load_from_string(model.proto)
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.ClearField("shape")
    session = ep.session(proto.SerializeToString(), options(), claim="dynamic_matmul")
    assert taken(session) in (sorted([*WHOLE, "Add"]), None)
    for shape in ((K,), (0, K), (5, K), (2, 0, K), (2, 3, K), (2, 1, 3, K)):
        feeds = {"A": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
        np.testing.assert_array_equal(session.run(None, feeds)[0], next(model.meaning(feeds)))
    with pytest.raises(Exception, match=f"'product0'.*has shape .2, {K + 1}., its last size must be K={K}"):
        session.run(None, {"A": np.zeros((2, K + 1), np.float32)})


def edited(change, **changes):
    model = onnx.load_from_string(Model(**changes).proto)
    change(model.graph)
    return model.SerializeToString()


def to_input(graph, name):
    (tensor,) = (tensor for tensor in graph.initializer if tensor.name == name)
    graph.initializer.remove(tensor)
    graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))


def cut(graph):
    """Down to the sums."""
    end = next(index for index, node in enumerate(graph.node) if node.op_type == "MatMulInteger")
    del graph.node[end + 1 :]
    graph.output[0].name = graph.node[end].output[0]
    graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT32


FLOAT = {"form": "matmul_integer_to_float"}


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (edited(cut), "MatMulInteger node 'product0': its result is int32"),
        (edited(lambda g: to_input(g, "W0")), "MatMulInteger node 'product0': input B is no constant of this graph"),
        (edited(lambda g: to_input(g, "points0")), "'product0': input b_zero_point is no constant of this graph"),
        (edited(lambda g: to_input(g, "scales0"), **FLOAT), "input b_scale is no constant of this graph"),
        (edited(lambda g: to_input(g, "bias0"), bias="own", **FLOAT), "its bias is no constant of N values"),
        (
            edited(lambda g: to_input(g, "bias0"), bias="own", form="dynamic_quantize_matmul"),
            "com.microsoft::DynamicQuantizeMatMul node 'product0': its bias is no constant of N values",
        ),
    ],
)
def test_what_is_left(proto, reason, capfd):
    session = ep.session(proto, options(log_severity_level=1), claim="dynamic_matmul")
    (line,) = (line for line in capfd.readouterr().err.splitlines() if "left to others" in line)
    assert reason in line
    assert taken(session) in ([], None)


@pytest.mark.skipif(not KNOWS_WHO_RUNS_WHAT, reason="ONNX Runtime 1.23 does not tell who runs what")
def test_a_scale_that_may_not_be_one_number():
    """A scale a row of the activations is multiplied by others."""

    def change(graph):
        graph.input.append(onnx.helper.make_tensor_value_info("per_row", onnx.TensorProto.FLOAT, ["m", 1]))
        (mul,) = (node for node in graph.node if "scales0" in node.input)
        mul.input[list(mul.input).index("round_out1")] = "per_row"

    proto = edited(change, narrow=True)
    session = ep.session(proto, options(), claim="dynamic_matmul")
    assert taken(session) == ["Cast", "MatMulInteger"]
    feeds = {**Model().feeds(5), "per_row": np.random.default_rng(0).uniform(1, 2, (5, 1)).astype(np.float32)}
    np.testing.assert_allclose(session.run(None, feeds)[0], unoptimized(proto).run(None, feeds)[0], rtol=1e-6)


def test_a_scale_with_several_values_at_run_time():
    """An error that names the node, as it is one without us."""
    proto = edited(lambda graph: graph.input[1].type.tensor_type.ClearField("shape"), **FLOAT)
    feeds = {**Model(**FLOAT).feeds(5), "scale": np.ones(3, np.float32)}
    session = ep.session(proto, options(), claim="dynamic_matmul")
    with pytest.raises(Exception, match=r"'product0': the scale of A has shape .3., must be one for all"):
        session.run(None, feeds)


@pytest.mark.parametrize("form", ["chain", "dynamic_quantize_matmul", "matmul_integer_to_float"])
def test_a_product_that_nothing_reads(form):
    """Without optimizations, which would remove it."""
    model = Model(form=form, products=2)
    proto = onnx.load_from_string(model.proto)
    del proto.graph.output[1]
    chosen = options(graph_optimization_level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    session = ep.session(proto.SerializeToString(), chosen, claim="dynamic_matmul")
    if KNOWS_WHO_RUNS_WHAT:
        assert {"product0", "product1"} <= set(ep.assigned_nodes(session)[ep.NAME])
    feeds = model.feeds(5)
    np.testing.assert_array_equal(session.run(None, feeds)[0], next(model.meaning(feeds)))


@pytest.mark.parametrize("size", [33026, 65794])
def test_sums_beyond_int32(size, tmp_path):
    """The largest that there are: true ones, where ONNX Runtime's wrap around; saved ones, too."""
    model = Model(weight="uint8", per="tensor", size=size)
    W, scales, *_ = model.parts[0]
    proto = onnx.load_from_string(model.proto)
    for tensor in proto.graph.initializer:
        if tensor.name == "W0":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros_like(W), "W0"))
        elif tensor.name == "points0":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(255, np.uint8), "points0"))
    onnx.save(proto, tmp_path / "model.onnx")
    compile_context(tmp_path / "model.onnx", claim="dynamic_matmul")
    A = np.ones((3, size), np.float32)
    want = np.full((3, N), -255.0 * size * np.float64(scales))
    for name, given in (
        ("model.onnx", {"claim": "dynamic_matmul"}),
        ("model.ctx.onnx", {}),
        ("model.ctx.onnx", {"verify": 1}),
    ):
        (got,) = ep.session(tmp_path / name, options(), **given).run(None, {"A": A})
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_what_is_no_faster_is_left_unless_it_is_named(capfd):
    session = ep.session(Model().proto, options(log_severity_level=1), isa="scalar")
    assert "MatMulInteger node 'product0': we are no faster on scalar" in capfd.readouterr().err
    assert taken(session) in ([], None)
    assert taken(ep.session(Model().proto, options(), isa="scalar", claim="dynamic_matmul")) in (sorted(WHOLE), None)


@pytest.mark.skipif("avx2" not in _kernels.supported_isas(), reason="a rule for x86")
@pytest.mark.parametrize(("activation", "takes"), [("uint8", False), ("int8", True)])
def test_what_is_taken_on_avx2(activation, takes):
    """ONNX Runtime has no kernel for signed activations there but portable code."""
    model = Model(form="matmul_integer_to_float", activation=activation)
    expected = ["MatMulIntegerToFloat"] if takes else []
    assert taken(ep.session(model.proto, options(), isa="avx2")) in (expected, None)


def test_verify_reports_the_largest_error(capfd):
    model = Model(bias="after")
    session = ep.session(model.proto, options(log_severity_level=2), claim="dynamic_matmul", verify=1)
    session.run(None, model.feeds(5))
    (line,) = (line for line in capfd.readouterr().err.splitlines() if "verify: MatMulInteger node 'product0'" in line)
    words = line.split("largest error ")[1].replace(",", "").split()
    assert float(words[0]) < 1e-6 * float(words[3])


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("weight", [QuantType.QInt8, QuantType.QUInt8])
def test_models_of_onnx_runtime(per_channel, weight, tmp_path):
    """Two products of the same input, then one after a Relu."""
    b = graphs.Builder(17)
    x = b.input("x", ["m", 3, 64])
    first, second = (b.op("MatMul", x, b.constant(name, graphs.weight(64, 48, seed))) for seed, name in enumerate("UV"))
    hidden = b.op("Relu", b.op("Add", first, b.constant("bias", graphs.weight(1, 48, 3)[0])))
    b.output(b.op("MatMul", hidden, b.constant("W", graphs.weight(48, 40, 2))), ["m", 3, 40])
    b.output(second, ["m", 3, 48])
    ir.save(b.model(8), tmp_path / "model.onnx")
    quantize_dynamic(
        tmp_path / "model.onnx", tmp_path / "out.onnx", per_channel=per_channel, weight_type=weight,
        reduce_range=products_saturate(),
    )  # fmt: skip
    session = ep.session(tmp_path / "out.onnx", options(), claim="dynamic_matmul")
    assert taken(session) in (sorted([*CHAIN, "Add", *CHAIN, *WHOLE]), None)
    feeds = {"x": np.random.default_rng(2).standard_normal((7, 3, 64)).astype(np.float32)}
    for got, want in zip(session.run(None, feeds), unoptimized(tmp_path / "out.onnx").run(None, feeds), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
