"""The op inside ONNX Runtime: types, shapes, threads, and errors that name the node and the value."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor

import graphs
import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress.custom_ops import _kernels, functions, library_path, reference, register
from pairs import all_pairs

RNG = np.random.default_rng(3)


def make(
    *, bits=4, K=100, N=37, block_size=32, level=0, activation=np.float32, scale=np.float32, zero_points=None,
    bias=False, function=True, runtime_weight=False, lead=("a", "b"), **changed
):  # fmt: skip
    """A model of one node and the arrays in it; `changed` overrides attributes or, by name, inputs."""
    blocks = -(-K // block_size)
    arrays = {
        "B": reference.pack_codes(RNG.integers(0, 2**bits, (N, blocks, block_size), dtype=np.uint8), bits),
        "scales": RNG.uniform(0.01, 0.02, (N, blocks)).astype(scale),
    }
    if isinstance(zero_points, np.ndarray):
        arrays["zero_points"] = zero_points
    elif zero_points == "packed":
        arrays["zero_points"] = reference.pack_zero_points(RNG.integers(0, 2**bits, (N, blocks), dtype=np.uint8), bits)
    elif zero_points == "float":
        arrays["zero_points"] = RNG.uniform(0, 2**bits, (N, blocks)).astype(scale)
    if bias:
        arrays["bias"] = RNG.standard_normal(N).astype(activation)
    attributes = {"K": K, "N": N, "bits": bits, "block_size": block_size, "accuracy_level": level}
    attributes |= {k: v for k, v in changed.items() if k in attributes}
    arrays |= {k: v for k, v in changed.items() if k in ("B", "scales", "bias")}
    b = graphs.Builder()
    kind = ir.DataType.from_numpy(np.dtype(activation))
    inputs = [b.input("A", [*lead, K], kind)]
    for name in ("B", "scales", "zero_points", "bias"):
        if name not in arrays:
            inputs.append(None)
        elif runtime_weight:
            inputs.append(b.input(name, arrays[name].shape, ir.DataType.from_numpy(arrays[name].dtype)))
        else:
            inputs.append(b.constant(name, arrays[name]))
    while inputs[-1] is None:
        inputs.pop()
    y = b.op("MatMulNBits", *inputs, name="the_node", domain="onnxpress", **attributes)
    b.output(y, [*lead, N], kind)
    b.graph.opset_imports["onnxpress"] = 1
    model = b.model(10)
    if function:
        body = functions.matmul_nbits(
            bits=bits, K=K, N=N, block_size=block_size, activation=kind,
            scale=ir.DataType.from_numpy(np.dtype(scale)), zero_points=zero_points is not None, bias=bias,
        )  # fmt: skip
        model.functions[body.identifier()] = body
        y.producer().overload = body.overload
    return ir.to_proto(model).SerializeToString(), arrays


def session(model, ours=True, **options):
    opts = ort.SessionOptions()
    opts.log_severity_level = 4
    for key, value in options.items():
        setattr(opts, key, value)
    if ours:
        register(opts)
    return ort.InferenceSession(model, opts)


def expected(A, arrays, *, bits=4, K=100, block_size=32, level=0):
    zero_points = arrays.get("zero_points")
    return reference.matmul_nbits(
        A, arrays["B"], arrays["scales"], zero_points, arrays.get("bias"),
        bits=bits, block_size=block_size, K=K, accuracy_level=level,
    )  # fmt: skip


@all_pairs(
    {
        "bits": range(2, 9),
        "level": [0, 4],
        "activation": [np.float32, np.float16],
        "scale": [np.float32, np.float16, ml_dtypes.bfloat16],
        "zero_points": [None, "packed", "float"],
    }
)
def test_types(bits, level, activation, scale, zero_points):
    bias = bits % 2 == 0
    model, arrays = make(
        bits=bits, level=level, activation=activation, scale=scale, zero_points=zero_points, bias=bias, function=False
    )
    A = RNG.standard_normal((2, 3, 100)).astype(activation)
    (got,) = session(model).run(None, {"A": A})
    want = expected(A, arrays, bits=bits, level=level)
    precision = 1e-5 if activation == np.float32 else 2e-3
    assert got.dtype == activation
    np.testing.assert_allclose(got, want, atol=precision * np.abs(want).max())


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("zero_points", [None, "packed"])
@pytest.mark.parametrize("activation", [np.float32, np.float16])
def test_function_body_says_the_same_without_our_library(bits, zero_points, activation):
    model, arrays = make(bits=bits, zero_points=zero_points, activation=activation, bias=True)
    onnx.checker.check_model(model, full_check=True)
    A = RNG.standard_normal((2, 3, 100)).astype(activation)
    (stock,) = session(model, ours=False).run(None, {"A": A})
    (got,) = session(model).run(None, {"A": A})
    want = expected(A, arrays, bits=bits)
    precision = 1e-5 if activation == np.float32 else 2e-3
    for value in (stock, got):
        np.testing.assert_allclose(value, want, atol=precision * np.abs(want).max())


def test_our_kernel_runs_where_the_library_is_registered(tmp_path):
    """Activations at level 4 are rounded by our kernel and not by the function's body."""
    model, arrays = make(level=4)
    A = RNG.standard_normal((1, 4, 100)).astype(np.float32)
    (stock,) = session(model, ours=False).run(None, {"A": A})
    (got,) = session(model).run(None, {"A": A})
    rounded, exact = expected(A, arrays, level=4), expected(A, arrays, level=0)
    np.testing.assert_allclose(got, rounded, atol=1e-5)
    np.testing.assert_allclose(stock, exact, atol=1e-5)
    assert np.abs(rounded - exact).max() > 1e-3


@pytest.mark.skipif(ort.__version__.startswith("1.23."), reason="ONNX Runtime 1.23 crashes in preparing it")
def test_shape_inference_in_cpp():
    """Without a function body the shape can only come from the op itself; an unknown size stays unknown."""
    model, _ = make(function=False, lead=("batch", None))
    proto = onnx.load_from_string(model)
    proto.graph.output[0].ClearField("type")
    assert session(proto.SerializeToString()).get_outputs()[0].shape[::2] == ["batch", 37]
    proto = onnx.load_from_string(make(function=False, lead=(3, 5))[0])
    proto.graph.output[0].ClearField("type")
    assert session(proto.SerializeToString()).get_outputs()[0].shape == [3, 5, 37]


@pytest.mark.parametrize("block_size", [48, 512, 100])
@pytest.mark.parametrize("bits", [3, 4, 7])
def test_block_sizes(block_size, bits):
    """Longer than those of the kernels, and one for all of K = 100; the function body says the same."""
    model, arrays = make(bits=bits, block_size=block_size, zero_points="packed", function=True)
    A = RNG.standard_normal((2, 3, 100)).astype(np.float32)
    want = expected(A, arrays, bits=bits, block_size=block_size)
    for ours in (True, False):
        np.testing.assert_allclose(session(model, ours).run(None, {"A": A})[0], want, atol=1e-5 * np.abs(want).max())


def test_ranks_and_empty_rows():
    for lead in ((), (4,), (1, 2, 3), (0,), (2, 0)):
        model, arrays = make(function=False, lead=lead)
        A = RNG.standard_normal((*lead, 100)).astype(np.float32)
        (got,) = session(model).run(None, {"A": A})
        assert got.shape == (*lead, 37)
        np.testing.assert_allclose(got, expected(A, arrays), atol=1e-5)


def test_weight_that_is_an_input():
    """Not a constant: packed on every call, so another weight gives another answer."""
    model, first = make(function=False, runtime_weight=True, zero_points="packed", bias=True)
    second = make(function=False, zero_points="packed", bias=True)[1]
    A = RNG.standard_normal((1, 2, 100)).astype(np.float32)
    opened = session(model)
    for arrays in (first, second):
        np.testing.assert_allclose(opened.run(None, {"A": A, **arrays})[0], expected(A, arrays), atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("level", [0, 4])
def test_threads_do_not_change_the_answer(threads, level):
    """Large enough to be split, for one row and for many."""
    model, arrays = make(K=1056, N=2000, level=level, function=False)
    opened = session(model, intra_op_num_threads=threads)
    for rows in (1, 7, 130):
        A = RNG.standard_normal((1, rows, 1056)).astype(np.float32)
        want = expected(A, arrays, K=1056, level=level)
        np.testing.assert_allclose(opened.run(None, {"A": A})[0], want, atol=3e-5 * np.abs(want).max())


def test_one_session_from_many_threads():
    model, arrays = make(K=512, N=800, level=4, function=False)
    opened = session(model, intra_op_num_threads=2)
    inputs = [RNG.standard_normal((1, 1 + i % 9, 512)).astype(np.float32) for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda A: opened.run(None, {"A": A})[0], inputs))
    for A, got in zip(inputs, results, strict=True):
        np.testing.assert_allclose(got, expected(A, arrays, K=512, level=4), atol=1e-4)


def test_sessions_come_and_go_in_parallel():
    def live(seed):
        model, arrays = make(level=4, function=False)
        A = np.random.default_rng(seed).standard_normal((1, 3, 100)).astype(np.float32)
        np.testing.assert_allclose(session(model).run(None, {"A": A})[0], expected(A, arrays, level=4), atol=1e-4)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(live, range(24)))


def test_registering_twice_is_harmless():
    options = ort.SessionOptions()
    register(options)
    register(options)
    model, _ = make(function=False)
    ort.InferenceSession(model, options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 9, "B": np.zeros((37, 4, 36), np.uint8)}, "bits is 9, must be 2 to 8"),
        ({"block_size": 24}, "block_size is 24, must be a multiple of 16, or K for one block"),
        ({"block_size": 512}, "input B has shape [37, 4, 16], but K=100"),
        ({"block_size": 2**62}, "block_size is 4611686018427387904"),
        ({"block_size": -32}, "block_size is -32"),
        ({"K": 0}, "K is 0"),
        ({"N": -5}, "N is -5"),
        ({"K": 2**62}, "K is 4611686018427387904"),
        ({"K": 200}, "input B has shape [37, 4, 16], but K=200"),
        ({"N": 38}, "need [38, 4, 16]"),
        ({"accuracy_level": 7}, "accuracy_level is 7"),
        ({"scales": np.ones((37, 3), np.float32)}, "input scales has shape [37, 3]"),
        ({"scales": np.ones((4, 37), np.float32)}, "input scales has shape [4, 37]"),
        ({"zero_points": np.ones((37, 4), np.uint8)}, "input zero_points has shape [37, 4]"),
    ],
)
def test_wrong_models_are_refused_when_the_session_is_made(changes, message):
    base = {k: changes.pop(k) for k in ("bits", "K", "N", "block_size", "accuracy_level") if k in changes}
    arrays = changes
    model, _ = make(function=False, **arrays)
    proto = onnx.load_from_string(model)
    for attribute in proto.graph.node[0].attribute:
        if attribute.name in base:
            attribute.i = base[attribute.name]
    proto.graph.output[0].ClearField("type")
    with pytest.raises(Exception, match="the_node") as error:
        session(proto.SerializeToString())
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["K", "N", "bits", "block_size"])
def test_missing_attributes(name):
    proto = onnx.load_from_string(make(function=False)[0])
    node = proto.graph.node[0]
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    with pytest.raises(Exception, match=f"attribute {name} is missing|does not exist|{name}"):
        session(proto.SerializeToString())


def test_wrong_shapes_at_run_time():
    proto = onnx.load_from_string(make(function=False)[0])
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "k"
    opened = session(proto.SerializeToString())
    with pytest.raises(Exception, match="the_node") as error:
        opened.run(None, {"A": np.zeros((1, 2, 99), np.float32)})
    assert "input A has shape [1, 2, 99], its last size must be K=100" in str(error.value)
    model, _ = make(function=False, bias=True, runtime_weight=True, zero_points="packed")
    proto = onnx.load_from_string(model)
    for value in proto.graph.input:
        del value.type.tensor_type.shape.dim[:]
        value.type.tensor_type.ClearField("shape")
    opened = session(proto.SerializeToString())
    arrays = make(zero_points="packed", bias=True)[1]
    feeds = {"A": np.zeros((1, 100), np.float32), **arrays}
    opened.run(None, feeds)
    wrongs = {"bias": np.zeros(36, np.float32), "B": arrays["B"][:, :3], "scales": arrays["scales"][1:]}
    for name, wrong in wrongs.items():
        with pytest.raises(Exception, match=f"the_node.*input {name} has shape"):
            opened.run(None, {**feeds, name: wrong})


def test_wrong_types_are_refused():
    for changes in ({"B": np.zeros((37, 4, 16), np.int8)}, {"scales": np.ones((37, 4), np.float64)}):
        with pytest.raises(Exception, match=r"MatMulNBits|the_node"):
            session(make(function=False, **changes)[0])


@pytest.mark.unsanitized
def test_library_needs_nothing_but_the_c_and_cpp_runtime():
    done = subprocess.run(["ldd", library_path()], capture_output=True, text=True, check=True)
    names = {line.split()[0].split("/")[-1].split(".so")[0] for line in done.stdout.splitlines()}
    assert names <= {"linux-vdso", "libstdc++", "libm", "libgcc_s", "libc", "ld-linux-x86-64", "ld-linux-aarch64"}


def test_only_entry_points_are_visible():
    done = subprocess.run(["nm", "-D", "--defined-only", library_path()], capture_output=True, text=True, check=True)
    names = sorted(line.split()[-1] for line in done.stdout.splitlines())
    assert names == ["CreateEpFactories", "RegisterCustomOps", "ReleaseEpFactory"]


@pytest.mark.parametrize("isa", _kernels.supported_isas())
def test_isa_of_a_session_is_forced_by_the_environment(isa, monkeypatch):
    monkeypatch.setenv("ONNXPRESS_ISA", isa)
    model, arrays = make(level=4, function=False)
    A = np.ones((1, 3, 100), np.float32)
    np.testing.assert_allclose(session(model).run(None, {"A": A})[0], expected(A, arrays, level=4), atol=1e-4)
