"""EPContext models: what is saved comes back bit for bit, in any process, in any number."""

from __future__ import annotations

import hashlib
from pathlib import Path

import graphs
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from contexts import compiled, feeds_of, nbits_model, run
from onnxpress import ep
from pairs import all_pairs
from sessions import KNOWS_WHO_RUNS_WHAT, options
from sparse import Case

ALL = "matmul_nbits,qdq_matmul,dynamic_matmul"  # also where we are no faster


def dequantized_model(K=64, N=32):
    b = graphs.Builder(21)
    rng = np.random.default_rng(0)
    codes = b.constant("codes", rng.integers(-128, 128, (K, N), dtype=np.int8))
    scales = b.constant("scales", rng.uniform(0.01, 0.02, (K // 32, N)).astype(np.float32))
    W = b.op("DequantizeLinear", codes, scales, axis=0, block_size=32)
    y = b.op("Add", b.op("MatMul", b.input("A", ["m", K]), W), b.constant("bias", rng.standard_normal(N, np.float32)))
    b.output(y, ["m", N])
    return b.model(10)


def gated_model(K=64, N=33):
    """Two products of the same rows, SiLU of one times the other."""
    b = graphs.Builder()
    b.graph.opset_imports["com.microsoft"] = 1
    rng, a = np.random.default_rng(0), b.input("A", ["m", K])

    def product(name):
        codes = b.constant(f"{name}.codes", rng.integers(0, 256, (N, K // 32, 16), dtype=np.uint8))
        scales = b.constant(f"{name}.scales", rng.uniform(0.01, 0.1, (N, K // 32)).astype(np.float32))
        return b.op("MatMulNBits", a, codes, scales, domain="com.microsoft", K=K, N=N, bits=4, block_size=32)

    up, gate = product("up"), product("gate")
    b.output(b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up), ["m", N])
    return b.model(10)


def int8_model(K=70, N=33):
    """A QDQ group of codes in and out, then activations that are rounded at run time."""
    b, rng = graphs.Builder(21), np.random.default_rng(0)
    a_scale, y_scale = b.constant("a_scale", np.float32(0.02)), b.constant("y_scale", np.float32(0.2))
    zero = b.constant("zero", np.uint8(120))

    def weight(name, K, N):
        codes = b.constant(f"{name}.codes", rng.integers(-127, 128, (K, N)).astype(np.int8))
        scales = b.constant(f"{name}.scales", rng.uniform(0.001, 0.01, N).astype(np.float32))
        return codes, scales, b.constant(f"{name}.zeros", rng.integers(-5, 5, N).astype(np.int8))

    a = b.op("QuantizeLinear", b.input("A", ["m", K]), a_scale, zero)
    w = b.op("DequantizeLinear", *weight("static", K, N), axis=1)
    y = b.op("MatMul", b.op("DequantizeLinear", a, a_scale, zero), w)
    y = b.op("Add", y, b.constant("bias", rng.standard_normal(N, np.float32)))
    y = b.op("DequantizeLinear", b.op("QuantizeLinear", y, y_scale, zero), y_scale, zero)
    codes, scales, zeros = weight("dynamic", N, 20)
    rounded, scale, point = b.op("DynamicQuantizeLinear", b.op("Tanh", y), outputs=3)
    y = b.op("Cast", b.op("MatMulInteger", rounded, codes, point, zeros), to=int(ir.DataType.FLOAT))
    b.output(b.op("Mul", y, b.op("Mul", scale, scales)), ["m", 20])
    return b.model(10)


@all_pairs(
    {
        "bits": [2, 3, 4, 8],
        "zero_points": [None, "packed", "float"],
        "bias,activation": [(None, np.float16), ("constant", np.float32), ("input", np.float32)],
    }
)
def test_round_trip(tmp_path, bits, zero_points, bias, activation):
    model = nbits_model(bits, zero_points=zero_points, bias=bias, activation=activation, level=4)
    path, context, _ = compiled(tmp_path, model)
    np.testing.assert_array_equal(run(context), run(path))
    np.testing.assert_array_equal(
        run(context, accuracy_level=0, isa="scalar"), run(path, accuracy_level=0, isa="scalar", claim=ALL)
    )
    assert sorted(tmp_path.iterdir()) == sorted(tmp_path.glob("model*"))  # no temporary files


def test_several_nodes_among_others(tmp_path):
    path, context, weights = compiled(tmp_path, nbits_model(count=3, bias="constant"))
    proto = onnx.load(context)
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("EPContext") == 3
    assert kinds.count("Tanh") == 3
    assert not any("B" in tensor.name for tensor in proto.graph.initializer)
    assert {entry.domain for entry in proto.opset_import} == {"", "com.microsoft"}
    names = [
        {a.name: a for a in n.attribute}["ep_cache_context"].s for n in proto.graph.node if n.op_type == "EPContext"
    ]
    assert names == [weights.name.encode()] * 3
    np.testing.assert_array_equal(run(context), run(path))


def test_weights_of_dequantized_products(tmp_path):
    path, context, _ = compiled(tmp_path, dequantized_model())
    np.testing.assert_array_equal(run(context), run(path))
    if KNOWS_WHO_RUNS_WHAT:
        assert set(ep.assigned_nodes(ep.session(context, options()))) == {ep.NAME}


@pytest.mark.parametrize(("model", "nodes"), [(gated_model(), 2), (int8_model(), 2)], ids=["gate", "int8"])
def test_every_kind_of_node(tmp_path, model, nodes):
    path, context, _ = compiled(tmp_path, model, claim=ALL)
    kinds = [node.op_type for node in onnx.load(context).graph.node]
    assert kinds.count("EPContext") == nodes
    np.testing.assert_array_equal(run(context), run(path, claim=ALL))
    np.testing.assert_array_equal(run(context, verify=1), run(path, claim=ALL))


def test_equal_weights_are_stored_once(tmp_path):
    sizes = {}
    for same in (False, True):
        (tmp_path / str(same)).mkdir()
        path, context, weights = compiled(tmp_path / str(same), nbits_model(K=512, N=512, count=3, same=same))
        sizes[same] = weights.stat().st_size
        np.testing.assert_array_equal(run(context), run(path))
    assert sizes[True] < 0.4 * sizes[False]


def test_options_at_load(tmp_path, capfd):
    path, context, _ = compiled(tmp_path, nbits_model(bias="constant", level=4, zero_points="packed"), accuracy_level=0)
    np.testing.assert_array_equal(run(context), run(path, accuracy_level=0))
    np.testing.assert_array_equal(run(context, accuracy_level=4), run(path))
    np.testing.assert_array_equal(run(context, claim="dequantized_matmul"), run(path, accuracy_level=0))
    capfd.readouterr()
    session = ep.session(context, options(log_severity_level=2), verify=1, accuracy_level=4)
    session.run(None, feeds_of(session))
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "verify: " in line]
    error, largest = (float(line.split(f"largest {what} ")[1].split(",")[0]) for what in ("error", "output"))
    assert "node 'product0'" in line
    assert 0 < error < 0.03 * largest


@pytest.mark.parametrize("bits", range(2, 9))
def test_verifying_reads_the_packed_weight(tmp_path, bits, capfd):
    _, context, _ = compiled(tmp_path, nbits_model(bits, zero_points="float" if bits % 2 else "packed"))
    session = ep.session(context, options(log_severity_level=2), verify=1)
    session.run(None, feeds_of(session))
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "verify: " in line]
    assert float(line.split("largest error ")[1].split(",")[0]) < 1e-4


def test_with_plain_onnx_runtime(tmp_path):
    path, context, _ = compiled(tmp_path, nbits_model())
    chosen = options()
    ep.append(chosen)
    session = ort.InferenceSession(context, chosen)
    np.testing.assert_array_equal(session.run(None, feeds_of(session))[0], run(path))
    with pytest.raises(Exception, match="EPContext"):
        ort.InferenceSession(context, options(), providers=["CPUExecutionProvider"])


def by_session(path, **entries):
    chosen = options()
    for key, value in {"enable": 1, **entries}.items():
        chosen.add_session_config_entry(f"ep.context_{key}", str(value))
    return ep.session(path, chosen)


def test_by_a_session(tmp_path, monkeypatch):
    """Without our command: ONNX Runtime's own entries, names and refusals."""
    path = tmp_path / "model.onnx"
    ir.save(nbits_model(), path)
    session = by_session(path)
    np.testing.assert_array_equal(session.run(None, feeds_of(session))[0], run(path))
    np.testing.assert_array_equal(run(tmp_path / "model_ctx.onnx"), run(path))
    monkeypatch.chdir(tmp_path)
    by_session("model.onnx", file_path="named.onnx")
    np.testing.assert_array_equal(run("named.onnx"), run(path))
    with pytest.raises(Exception, match=r"ep\.context_embed_mode=1 is not supported"):
        by_session(path, embed_mode=1)
    with pytest.raises(
        Exception, match=r"is no file, so ep\.context_file_path must say where|ep_context_path and model_path are empty"
    ):
        by_session(path.read_bytes())
    with pytest.raises(Exception, match="compiled already"):
        by_session("named.onnx", file_path="again.onnx")
    with pytest.raises(Exception, match="cannot write: No such file or directory"):
        by_session(path, file_path=tmp_path / "missing" / "x.onnx")


def test_model_from_bytes(tmp_path):
    path, context, _ = compiled(tmp_path, nbits_model())
    with pytest.raises(Exception, match="nobody knows where its weights lie"):
        ep.session(context.read_bytes(), options())
    for key, value in (
        ("session.model_external_initializers_file_folder_path", tmp_path),
        ("ep.context_file_path", context),
    ):
        chosen = options()
        chosen.add_session_config_entry(key, str(value))
        session = ep.session(context.read_bytes(), chosen)
        np.testing.assert_array_equal(session.run(None, feeds_of(session))[0], run(path))


def test_the_bytes_of_this_version():
    """Where this fails, files that users have would be misread: raise kContextFormat with it."""
    import tempfile

    digest = hashlib.sha256()
    for bits in range(2, 9):
        for zero_points in (None, "packed", "float"):
            with tempfile.TemporaryDirectory() as folder:
                model = nbits_model(bits, zero_points=zero_points, bias="constant", K=288)
                digest.update(compiled(Path(folder), model)[2].read_bytes())
    sparse = [ir.from_proto(onnx.load_from_string(Case(70, 37, *block).model())) for block in ((4, 4), (1, 4), (4, 1))]
    for model in (gated_model(), int8_model(), *sparse):
        with tempfile.TemporaryDirectory() as folder:
            digest.update(compiled(Path(folder), model, claim=f"{ALL},block_sparse")[2].read_bytes())
    assert digest.hexdigest()[:16] == "e5870063cc9c10df"
