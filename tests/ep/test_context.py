"""EPContext models: what is saved comes back bit for bit, in any process, in any number."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import graphs
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from contexts import compiled, feeds_of, nbits_model, run
from onnxpress import ep
from onnxpress.optimizer import OnnxpressError, compile_context
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


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("zero_points", [None, "packed", "float"])
@pytest.mark.parametrize(("bias", "activation"), [(None, np.float16), ("constant", np.float32), ("input", np.float32)])
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


def with_branches(K, N):
    """The product in both branches of an If, which hold its weight, and outside of it."""
    model = ir.to_proto(nbits_model(K=K, N=N))
    branch = onnx.helper.make_graph([*model.graph.node], "branch", [], [model.graph.output[0]], model.graph.initializer)
    again = onnx.GraphProto.FromString(branch.SerializeToString())
    node = onnx.helper.make_node(
        "If", ["condition"], [model.graph.output[0].name], then_branch=branch, else_branch=again
    )
    outside = ir.to_proto(nbits_model(K=K, N=N)).graph
    for item in (*outside.node, *outside.initializer):
        item.name += "_outside"
    outside.node[0].input[1:3] = [name + "_outside" for name in outside.node[0].input[1:3]]
    outside.node[0].output[0] = outside.node[1].input[0] = "product_outside"
    outside.node[1].output[0] = "outside"
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend([node, *outside.node])
    model.graph.initializer.extend(outside.initializer)
    model.graph.input.append(onnx.helper.make_tensor_value_info("condition", onnx.TensorProto.BOOL, []))
    model.graph.output.append(onnx.helper.make_tensor_value_info("outside", onnx.TensorProto.FLOAT, ["m", N]))
    return model


@pytest.mark.skipif(not KNOWS_WHO_RUNS_WHAT, reason="ONNX Runtime 1.23 cannot run such a model on a provider like ours")
def test_nodes_of_inner_graphs_stay(tmp_path):
    onnx.save(with_branches(32, 4), tmp_path / "model.onnx")
    compile_context(tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.ctx.onnx")
    assert sorted(node.op_type for node in proto.graph.node) == ["EPContext", "If", "Tanh"]
    feeds = {"A": np.random.default_rng(0).standard_normal((3, 32), np.float32), "condition": np.array(True)}
    want, got = (ep.session(tmp_path / n, options()).run(None, feeds) for n in ("model.onnx", "model.ctx.onnx"))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def same_as_before(folder, branch=True):
    """The context model beside the model computes what that does."""
    feeds = {"A": np.random.default_rng(0).standard_normal((3, 96), np.float32), "condition": np.array(branch)}
    want, got = (ep.session(folder / n, options()).run(None, feeds) for n in ("model.onnx", "model.ctx.onnx"))
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.skipif(not KNOWS_WHO_RUNS_WHAT, reason="ONNX Runtime 1.23 cannot run such a model on a provider like ours")
@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("as_nodes", [False, True])
def test_constants_of_inner_graphs(tmp_path, external, as_nodes):
    """Large ones, which ONNX Runtime cannot save where they are."""
    model = with_branches(96, 37)
    for attribute in model.graph.node[0].attribute if as_nodes else ():
        for tensor in attribute.g.initializer:
            attribute.g.node.insert(0, onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
        del attribute.g.initializer[:]
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=external, location="data", size_threshold=0)
    compile_context(tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.ctx.onnx")
    assert sorted(node.op_type for node in proto.graph.node) == ["EPContext", "If", "Tanh"]
    assert [value.name for value in proto.graph.output] == [value.name for value in model.graph.output]
    same_as_before(tmp_path)
    same_as_before(tmp_path, branch=False)


@pytest.mark.skipif(not KNOWS_WHO_RUNS_WHAT, reason="ONNX Runtime 1.23 cannot run such a model on a provider like ours")
def test_what_inner_graphs_read_of_the_main_graph(tmp_path):
    """A weight that the main graph's product shares, one of their own, a folded constant, and the product itself."""
    model = with_branches(96, 37).graph
    outside = onnx.helper.make_node
    for attribute in model.node[0].attribute:
        branch, name = attribute.g, model.node[0].output[0]
        branch.node[0].input[1:3] = ["B0_outside", "scales_inside"]
        branch.node[1].output[0] = "before"
        nodes = [("Add", ["before", "folded"], "sum"), ("Add", ["sum", "product_outside"], name)]
        branch.node.extend(outside(op_type, inputs, [output]) for op_type, inputs, output in nodes)
        del branch.initializer[:]
    scales = next(tensor for tensor in model.initializer if tensor.name == "scales0_outside")
    again, row = onnx.TensorProto.FromString(scales.SerializeToString()), np.arange(37, dtype=np.float32)
    again.name = "scales_inside"
    model.initializer.extend([again, onnx.numpy_helper.from_array(row[:, None], "column")])
    branches = model.node[0]
    del model.node[0]
    model.node.extend([outside("Transpose", ["column"], ["folded"]), branches])
    proto = with_branches(96, 37)
    proto.graph.CopyFrom(model)
    onnx.save(proto, tmp_path / "model.onnx")
    compile_context(tmp_path / "model.onnx")
    same_as_before(tmp_path)
    same_as_before(tmp_path, branch=False)


@pytest.mark.skipif(not KNOWS_WHO_RUNS_WHAT, reason="ONNX Runtime 1.23 cannot run such a model on a provider like ours")
def test_what_inner_graphs_compute_of_constants(tmp_path):
    """ONNX Runtime folds it when it loads the model, and could not save it."""
    model = with_branches(96, 37)
    branch = model.graph.node[0].attribute[0].g
    branch.initializer.append(onnx.numpy_helper.from_array(np.arange(37, dtype=np.float32)[:, None], "column"))
    branch.node.append(onnx.helper.make_node("Transpose", ["column"], ["row"]))
    branch.node[1].output[0] = "before"
    branch.node.append(onnx.helper.make_node("Add", ["before", "row"], [branch.output[0].name]))
    onnx.save(model, tmp_path / "model.onnx")
    compile_context(tmp_path / "model.onnx")
    same_as_before(tmp_path)
    same_as_before(tmp_path, branch=False)


@pytest.mark.skipif(not KNOWS_WHO_RUNS_WHAT, reason="ONNX Runtime 1.23 cannot run such a model on a provider like ours")
def test_inner_graphs_that_onnx_runtime_cannot_save(tmp_path):
    """A larger constant that one of them returns has to be there."""
    model = with_branches(96, 37)
    branch = model.graph.node[0].attribute[0].g
    (result,) = branch.output
    del branch.node[:], branch.initializer[:]
    branch.initializer.append(onnx.numpy_helper.from_array(np.zeros((3, 37), np.float32), "stored"))
    branch.node.append(onnx.helper.make_node("Neg", ["stored"], [result.name]))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(OnnxpressError, match=r"cannot compile: .*graphs inside nodes"):
        compile_context(tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


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
    assert digest.hexdigest()[:16] == "064e79a111cfd2c2"


SCRIPT = """
import sys, time; sys.path[:0] = {folders!r}
from test_context import *
session = ep.session({path!r}, options())
np.save({out!r}, session.run(None, feeds_of(session))[0])
"""

HOLD = """
print("ready", flush=True)
sys.stdin.read()
"""

PAGES = """
found, wanted = {}, False
for line in Path("/proc/self/smaps").read_text().splitlines():
    first, *rest = line.split()
    if not first.endswith(":"):
        wanted = ".weights" in line
    elif wanted and rest[-1] == "kB":
        found[first] = found.get(first, 0) + int(rest[0])
print(*(found[f"{kind}_Clean:"] + found[f"{kind}_Dirty:"] for kind in ("Shared", "Private")))
"""


def script(path, out, *more):
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    return [sys.executable, "-c", SCRIPT.format(folders=folders, path=str(path), out=str(out)) + "".join(more)]


FULL = """
import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from onnxpress.optimizer import OnnxpressError, compile_context
try:
    compile_context({path!r})
except OnnxpressError as error:
    print(error)
"""


def test_a_disk_that_is_full(tmp_path):
    """As far as a limit of sizes is one: an error, and no file but the model."""
    ir.save(nbits_model(), tmp_path / "model.onnx")
    command = [sys.executable, "-c", FULL.format(path=str(tmp_path / "model.onnx"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cannot write: File too large" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_another_process(tmp_path):
    path, context, _ = compiled(tmp_path, nbits_model(level=4))
    subprocess.run(script(context, tmp_path / "y.npy"), check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), run(path))


@pytest.mark.unsanitized
def test_processes_share_their_pages(tmp_path):
    _, context, _ = compiled(tmp_path, nbits_model(K=2048, N=4096))
    first = subprocess.Popen(script(context, tmp_path / "1.npy", HOLD), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"ready\n"
    done = subprocess.run(script(context, tmp_path / "2.npy", PAGES), capture_output=True, text=True, check=True)
    first.communicate()
    shared, own = map(int, done.stdout.split())
    assert shared > 4096  # KiB: all that was read of 4 MiB of codes and their scales
    assert own == 0


def test_many_at_once(tmp_path):
    """Two models of one name, many times: whichever comes last is whole."""
    wanted = []
    for bits in (4, 8):
        ir.save(nbits_model(bits), tmp_path / f"{bits}.onnx")
        wanted.append(run(tmp_path / f"{bits}.onnx"))
    target = tmp_path / "out.ctx.onnx"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: compile_context(tmp_path / f"{4 + 4 * (i % 2)}.onnx", target), range(8)))
    got = run(target)
    assert any((got == want).all() for want in wanted)
    assert not list(tmp_path.glob(".*"))
    with ThreadPoolExecutor(4) as pool:
        for each in pool.map(lambda _: run(target), range(8)):
            np.testing.assert_array_equal(each, got)


def test_compiling_again_removes_the_old_weights(tmp_path):
    first = compiled(tmp_path, nbits_model(4))[2]
    path, context, second = compiled(tmp_path, nbits_model(8))
    assert not first.exists()
    np.testing.assert_array_equal(run(context), run(path))
    assert compiled(tmp_path, nbits_model(8))[2] == second
    assert second.exists()
