"""MatMulNBits nodes on the execution provider: what it takes, what it leaves, and that the answer is right."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from nbits_models import K, N, feeds_of, make, rows, taken
from onnxpress import ep
from onnxpress.custom_ops import _kernels, reference
from pairs import all_pairs
from sessions import KNOWS_WHO_RUNS_WHAT, options


@all_pairs(
    {
        "bits": [2, 4, 8],
        "block_size": [16, 32, 64, 128, 256],
        "zero_points": [None, "packed", "float"],
        "bias": [None, "constant", "input"],
    }
)
def test_float32(bits, block_size, zero_points, bias):
    model, W, values, arrays = make(bits=bits, block_size=block_size, zero_points=zero_points, bias=bias)
    session = ep.session(model, options())
    assert taken(session) in (True, None)
    for M in (1, 5):
        A = rows(M)
        (got,) = session.run(None, feeds_of(session, A, values, arrays))
        np.testing.assert_allclose(got, A @ W + values, atol=1e-5 * np.abs(A @ W).max())


@pytest.mark.parametrize("zero_points", [None, "packed"])
def test_float16(zero_points):
    model, W, values, arrays = make(activation=np.float16, zero_points=zero_points, bias="constant")
    session = ep.session(model, options())
    assert taken(session) in (True, None)
    A = rows(dtype=np.float16)
    (got,) = session.run(None, feeds_of(session, A, values, arrays))
    np.testing.assert_allclose(got, A.astype(np.float32) @ W + values, atol=2e-3 * np.abs(A @ W).max())


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_nodes_of_our_domain(bits):
    model, W, values, arrays = make(
        bits=bits, domain="onnxpress", zero_points="packed", bias="constant", scale=ml_dtypes.bfloat16
    )
    session = ep.session(model, options())
    assert taken(session) in (True, None)
    A = rows()
    (got,) = session.run(None, feeds_of(session, A, values, arrays))
    np.testing.assert_allclose(got, A @ W + values, atol=1e-5 * np.abs(A @ W).max())


@all_pairs({"domain": ["com.microsoft", "onnxpress"], "bits": [2, 4, 8], "block_size": [512, 4096], "level": [0, 4]})
def test_long_blocks(domain, bits, block_size, level):
    model, *_, arrays = make(domain=domain, bits=bits, block_size=block_size, zero_points="packed", level=level)
    session = ep.session(model, options())
    assert taken(session) in (True, None)
    A = rows()
    (got,) = session.run(None, {"A": A})
    want = reference.matmul_nbits(
        A, arrays["B"], arrays["scales"], arrays["zero_points"],
        bits=bits, block_size=block_size, K=K, accuracy_level=level,
    )  # fmt: skip
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.skipif(ort.__version__.startswith("1.23."), reason="ONNX Runtime 1.23 gives NaN for blocks beyond 256")
@pytest.mark.parametrize("block_size", [512, 2048])
def test_long_blocks_round_no_more_than_onnx_runtime(block_size, monkeypatch):
    """Activations with outliers, which spoil no more than 256 others each."""
    monkeypatch.setitem(globals(), "K", 2048)
    model, W, *_ = make(block_size=block_size, level=4)
    A = rows(64)
    A[:, 7] *= 50
    stock = ort.InferenceSession(model, options(), providers=["CPUExecutionProvider"])
    ours, theirs = (np.linalg.norm(s.run(None, {"A": A})[0] - A @ W) for s in (ep.session(model, options()), stock))
    assert ours < 1.001 * theirs


def test_blocks_that_onnx_runtime_has_not_are_left(capfd):
    model, *_ = make(block_size=48)
    with pytest.raises(Exception, match="block_size"):
        ep.session(model, options(log_severity_level=1)).run(None, {"A": rows()})
    assert "block_size is 48, no power of two from 16" in capfd.readouterr().err


@pytest.mark.parametrize("block_size", [48, K, 100])
def test_blocks_of_our_domain(block_size):
    model, W, *_ = make(block_size=block_size, domain="onnxpress", bits=3, zero_points="packed")
    session = ep.session(model, options())
    assert taken(session) in (True, None)
    A = rows()
    (got,) = session.run(None, {"A": A})
    np.testing.assert_allclose(got, A @ W, atol=1e-5 * np.abs(A @ W).max())


@all_pairs(
    {
        "activation": [np.float32, np.float16],
        "scale": [np.float32, np.float16, ml_dtypes.bfloat16],
        "zero_points": [None, "packed", "float"],
        "bits,bias": [(3, "input"), (4, None), (5, "constant"), (6, "input"), (7, None)],
    }
)
def test_every_form_of_our_domain(activation, scale, zero_points, bits, bias):
    """All types, from no rows to four axes."""
    model, W, values, arrays = make(
        bits=bits, domain="onnxpress", activation=activation, scale=scale, zero_points=zero_points, bias=bias
    )
    proto = onnx.load_from_string(model)
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.ClearField("shape")
    session = ep.session(proto.SerializeToString(), options())
    assert taken(session) in (True, None)
    rng = np.random.default_rng(6)
    for shape in ((K,), (0, K), (5, K), (2, 0, K), (2, 3, K), (2, 1, 3, K)):
        A = rng.standard_normal(shape).astype(activation)
        (got,) = session.run(None, feeds_of(session, A, values, arrays))
        want = A.astype(np.float32) @ W + values.astype(np.float32)
        assert got.dtype == activation
        assert got.shape == want.shape
        tolerance = 1e-5 if activation == np.float32 else 2e-3
        np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max(initial=1))


def test_flat_scales_and_zero_points():
    model, W, *_ = make(zero_points="packed", flat=True)
    A = rows()
    (got,) = ep.session(model, options()).run(None, {"A": A})
    np.testing.assert_allclose(got, A @ W, atol=1e-5 * np.abs(A @ W).max())


@pytest.mark.skipif(not KNOWS_WHO_RUNS_WHAT, reason="ONNX Runtime 1.23 does not tell who runs what")
@pytest.mark.parametrize("changes", [{"g_idx": True}, {"constant": False}])
def test_what_it_leaves_runs_elsewhere(changes, capfd):
    model, W, values, arrays = make(**changes)
    session = ep.session(model, options(log_severity_level=1))
    assert taken(session) is False
    reason = "g_idx is not supported" if "g_idx" in changes else "input B is no constant of this graph"
    assert f"com.microsoft::MatMulNBits node 'the_node': {reason}" in capfd.readouterr().err
    A = rows()
    (got,) = session.run(None, feeds_of(session, A, values, arrays))
    np.testing.assert_allclose(got, A @ W, atol=1e-4 * np.abs(A @ W).max())


@pytest.mark.parametrize("level", [0, 4])
def test_rows_of_float16_in_chunks(level):
    """As many as no room takes at once: each row is, bit for bit, as it is among few."""
    session = ep.session(make(activation=np.float16, level=level, bias="constant")[0], options())
    A = rows(40000, np.float16)
    parts = [session.run(None, {"A": A[begin : begin + 8000]})[0] for begin in range(0, len(A), 8000)]
    np.testing.assert_array_equal(session.run(None, {"A": A})[0], np.concatenate(parts))


def test_what_is_no_faster_is_left_unless_it_is_named(capfd):
    """In portable loops; of our own domain nobody else has kernels."""
    session = ep.session(make()[0], options(log_severity_level=1), isa="scalar")
    assert "com.microsoft::MatMulNBits node 'the_node': we are no faster on scalar" in capfd.readouterr().err
    assert not taken(session)
    assert taken(ep.session(make()[0], options(), isa="scalar", claim="matmul_nbits")) in (True, None)
    assert taken(ep.session(make(bits=3, domain="onnxpress")[0], options(), isa="scalar")) in (True, None)
    unknown = make(bits=8, zero_points="float")[0]  # to ONNX Runtime
    assert taken(ep.session(unknown, options(), isa="scalar")) in (True, None)


def test_accuracy_level_of_the_node_and_of_the_option():
    model, W, *_ = make(level=4)
    A = rows()
    (exact,) = ep.session(model, options(), accuracy_level=0).run(None, {"A": A})
    np.testing.assert_allclose(exact, A @ W, atol=1e-5 * np.abs(A @ W).max())
    (rounded,) = ep.session(model, options()).run(None, {"A": A})
    np.testing.assert_allclose(rounded, A @ W, atol=0.03 * np.abs(A @ W).max())
    assert np.abs(rounded - A @ W).max() > 10 * np.abs(exact - A @ W).max()


@pytest.mark.skipif("avx512bf16" not in _kernels.supported_isas(), reason="this CPU does not multiply bfloat16")
def test_accuracy_level_of_bfloat16():
    """Of the node and of the option."""
    W = make()[1]
    A = rows()
    want = A.astype(ml_dtypes.bfloat16).astype(np.float32) @ W
    for level, given in ((3, {}), (4, {"accuracy_level": 3})):
        (got,) = ep.session(make(level=level)[0], options(), isa="avx512bf16", **given).run(None, {"A": A})
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"accuracy_levle": 4}, "unknown option 'accuracy_levle'; there are accuracy_level, claim, isa and verify"),
        ({"accuracy_level": 2}, "accuracy_level is '2', must be 0 or 1 .float32., 3 "),
        ({"accuracy_level": "x"}, "accuracy_level is 'x'"),
        ({"claim": "matmul_nbits,gemm"}, "claim has 'gemm', there is matmul_nbits, "),
        ({"isa": "avx9"}, "isa: .*avx9"),
        ({"verify": "yes"}, "verify is 'yes', must be 0 or 1"),
    ],
)
def test_wrong_options(given, message):
    with pytest.raises(Exception, match=message):
        ep.session(make()[0], options(), **given)


def test_wrong_shape_at_run_time_names_the_node():
    proto = onnx.load_from_string(make()[0])
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "k"
    session = ep.session(proto.SerializeToString(), options())
    with pytest.raises(Exception, match=f"the_node.*has shape .2, {K + 1}., its last size must be K={K}"):
        session.run(None, {"A": np.zeros((2, K + 1), np.float32)})


def test_weights_of_an_outer_graph_are_left():
    """A node in a branch reads the weight of the graph around it."""
    model = onnx.load_from_string(make()[0])
    graph = model.graph
    branch = onnx.helper.make_graph(
        [onnx.NodeProto.FromString(graph.node[0].SerializeToString())], "branch", [], [graph.output[0]]
    )
    branch.node[0].output[0] = "inner"
    branch.output[0].name = "inner"
    node = onnx.helper.make_node("If", ["condition"], [graph.output[0].name], then_branch=branch, else_branch=branch)
    graph.input.append(onnx.helper.make_tensor_value_info("condition", onnx.TensorProto.BOOL, []))
    del graph.node[:]
    graph.node.append(node)
    _, W, *_ = make()
    A = rows()
    (got,) = ep.session(model.SerializeToString(), options()).run(None, {"A": A, "condition": np.array(True)})
    np.testing.assert_allclose(got, A @ W, atol=1e-4 * np.abs(A @ W).max())


@pytest.mark.parametrize("name", ["bias", "A"])
def test_constants_that_are_no_part_of_the_weight(name):
    """A bias of an outer graph, where the weight is in the branch, and a constant first input are left."""
    model, W, values, _ = make(bias="constant")
    proto = onnx.load_from_string(model)
    graph, A = proto.graph, rows()
    if name == "A":
        graph.initializer.append(onnx.numpy_helper.from_array(A, "A"))
        del graph.input[:]
    else:
        branch = onnx.GraphProto.FromString(graph.SerializeToString())
        branch.name = "branch"
        del branch.input[:]
        branch.output[0].name = branch.node[0].output[0] = "inner"
        (bias,) = (each for each in branch.initializer if each.name == "bias")
        branch.initializer.remove(bias)
        del graph.node[:], graph.initializer[:]
        graph.initializer.append(bias)
        node = onnx.helper.make_node("If", ["c"], [graph.output[0].name], then_branch=branch, else_branch=branch)
        graph.node.append(node)
        graph.input.append(onnx.helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []))
        proto.opset_import.append(onnx.helper.make_opsetid("", 21))
    plain = options(graph_optimization_level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    session = ep.session(proto.SerializeToString(), plain)
    assert taken(session) in (False, None)
    (got,) = session.run(None, {} if name == "A" else {"A": A, "c": np.array(True)})
    np.testing.assert_allclose(got, A @ W + values, atol=1e-4 * np.abs(A @ W).max())


def test_a_product_that_nothing_reads():
    proto = onnx.load_from_string(make()[0])
    second = onnx.NodeProto.FromString(proto.graph.node[0].SerializeToString())
    second.name, second.output[0] = "unread", "unread"
    proto.graph.node.append(second)
    A, (_, W, *_) = rows(), make()
    (got,) = ep.session(proto.SerializeToString(), options()).run(None, {"A": A})
    np.testing.assert_allclose(got, A @ W, atol=1e-5 * np.abs(A @ W).max())


@pytest.mark.skipif(not KNOWS_WHO_RUNS_WHAT, reason="ONNX Runtime 1.23 does not tell who runs what")
@pytest.mark.parametrize("size", [N, 1])
def test_a_bias_that_follows(size):
    """An Add of a constant of N values is taken along; of one value, it is left."""
    proto = onnx.load_from_string(make()[0])
    values = np.random.default_rng(1).standard_normal(size).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(values, "values"))
    output = proto.graph.output[0].name
    proto.graph.node[0].output[0] = "product"
    proto.graph.node.append(onnx.helper.make_node("Add", ["values", "product"], [output], name="sum"))
    proto.opset_import.append(onnx.helper.make_opsetid("", 21))
    _, W, *_ = make()
    session = ep.session(proto.SerializeToString(), options())
    assert ("sum" in ep.assigned_nodes(session)[ep.NAME]) == (size == N)
    A = rows()
    (got,) = session.run(None, {"A": A})
    np.testing.assert_allclose(got, A @ W + values, atol=1e-5 * np.abs(A @ W).max())
