"""MatMulMiniFloat, and DequantizeLinear of floating-point codes before a product, on the execution provider alone."""

from __future__ import annotations

import graphs
import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from contexts import compiled
from isas import ISAS
from minifloats import FORMATS, SCALE_TYPES, Case
from onnxpress.custom_ops import _kernels, reference
from pairs import all_pairs
from sessions import KNOWS_WHO_RUNS_WHAT, on_provider, options, taken


def by_kernel(case, A, isa=None, level=None):
    y, _ = _kernels.matmul_minifloat(
        A.reshape(-1, case.K), case.arrays["B"], case.arrays["scales"], case.arrays.get("bias"), format=case.format,
        block_size=case.block_size, K=case.K, accuracy_level=case.accuracy_level if level is None else level, isa=isa,
    )  # fmt: skip
    return y.reshape(*A.shape[:-1], case.N)


@all_pairs({"format": FORMATS, "scale": SCALE_TYPES, "activation": [np.float32, np.float16]})
def test_claims_every_form(format, scale, activation):
    for block_size in (0, 32):
        case = Case(format, scale=scale, activation=activation, block_size=block_size, bias=block_size == 0)
        A = case.feed(2, 3)
        opened = on_provider(case.model(), claim="minifloat")
        (got,) = opened.run(None, {"A": A})
        assert case.close(got, A)
        assert taken(opened) in (None, ["MatMulMiniFloat"])
        if activation == np.float32:
            np.testing.assert_array_equal(got, by_kernel(case, A))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("level", [0, 3])
def test_isa_and_level(isa, level):
    case = Case("e2m3", K=300)
    A = case.feed(2, 9)
    opened = on_provider(case.model(), isa=isa, accuracy_level=level)
    np.testing.assert_array_equal(opened.run(None, {"A": A})[0], by_kernel(case, A, isa, level))


def test_int8_is_no_level_of_theirs():
    """Asked for all nodes, it leaves these at their own."""
    case = Case(accuracy_level=3)
    A = case.feed(1, 4)
    opened = on_provider(case.model(), accuracy_level=4)
    np.testing.assert_array_equal(opened.run(None, {"A": A})[0], by_kernel(case, A))


def test_nor_of_those_that_were_saved(tmp_path):
    case = Case(accuracy_level=3)
    _, context, _ = compiled(tmp_path, ir.from_proto(onnx.load_from_string(case.model())))
    A = case.feed(2, 4)
    for level in (None, 4, 0):
        opened = on_provider(context) if level is None else on_provider(context, accuracy_level=level)
        want = by_kernel(case, A, level=0 if level == 0 else 3)
        np.testing.assert_array_equal(opened.run(None, {"A": A})[0], want)


def test_verify_finds_nothing():
    case = Case("nf4", bias=True)
    A = case.feed(1, 4)
    assert case.close(on_provider(case.model(), verify=True).run(None, {"A": A})[0], A)


@pytest.mark.parametrize("bad", ["B", "scales"])
def test_a_wrong_node_is_left(bad):
    """To a function body, where there is one that says nothing of it."""
    case = Case()
    array = case.arrays[bad].copy()
    array.reshape(-1)[5] = 0x7F if bad == "B" else np.inf
    opened = on_provider(case.model(**{bad: array}))
    assert taken(opened) in (None, [])


def test_what_follows_is_taken():
    case = Case("e5m2")
    proto = onnx.load_from_string(case.model())
    proto.graph.node[0].output[0] = "sum"
    proto.graph.node.append(onnx.helper.make_node("Relu", ["sum"], [proto.graph.output[0].name]))
    opened = on_provider(proto.SerializeToString())
    A = case.feed(1, 4)
    np.testing.assert_array_equal(opened.run(None, {"A": A})[0], np.maximum(by_kernel(case, A), 0))
    assert taken(opened) in (None, ["MatMulMiniFloat", "Relu"])


@all_pairs({"format": FORMATS, "scale": SCALE_TYPES})
def test_round_trip_of_a_context(tmp_path, format, scale):
    case = Case(format, scale=scale, bias=True)
    _, context, _ = compiled(tmp_path, ir.from_proto(onnx.load_from_string(case.model())))
    assert [node.op_type for node in onnx.load(context).graph.node] == ["EPContext"]
    A = case.feed(2, 3)
    for verify in (False, True):
        opened = on_provider(context, verify=verify)
        np.testing.assert_array_equal(opened.run(None, {"A": A})[0], by_kernel(case, A))


@pytest.mark.unsanitized
def test_one_copy_for_all_sessions():
    """Equal weights of several sessions are one blob, so a second session costs little."""
    case = Case(K=4096, N=4096, block_size=0)
    model = case.model()

    def resident():
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * 4096

    first = on_provider(model)
    before = resident()
    more = [on_provider(model) for _ in range(8)]
    assert resident() - before < 4 * 4096 * 4096  # a model's own bytes may stay with the allocator for a while
    A = case.feed(1, 1)
    (want,) = first.run(None, {"A": A})
    assert case.close(want, A)
    for opened in more:
        np.testing.assert_array_equal(opened.run(None, {"A": A})[0], want)


# Standard models

STANDARD = {
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e2m1": ml_dtypes.float4_e2m1fn,
}


def dequantized(format, per, *, K=96, N=38, transposed=False, zero_points=True, op="MatMul", wrong=None):
    """A model of DequantizeLinear and a product, and its weight [K, N]."""
    rng = np.random.default_rng(7)
    dtype = STANDARD[format]
    codes = rng.choice(np.flatnonzero(np.isfinite(reference.MINIFLOATS[format])), (K, N)).astype(np.uint8)
    if wrong is not None:
        codes[3, 4] = wrong
    scales = rng.uniform(0.01, 0.02, {"block": (K // 32, N), "column": (1, N), "tensor": (1, 1)}[per])
    scales = scales.astype(np.float32)
    W = reference.MINIFLOATS[format][codes] * np.repeat(scales, K // len(scales), axis=0)
    stored = [codes.view(dtype), scales]
    if transposed:
        stored = [np.ascontiguousarray(array.T) for array in stored]
    if per != "block":
        stored[1] = stored[1].reshape(-1) if per == "column" else stored[1].reshape(())
    axis = (0 if per == "block" else 1) ^ int(transposed)
    b = graphs.Builder(23)
    x = b.input("A", ["m", K])
    parts = [b.constant("codes", stored[0]), b.constant("scales", stored[1])]
    if zero_points:
        parts.append(b.constant("zeros", np.zeros(stored[1].shape, dtype)))
    w = b.op("DequantizeLinear", *parts, axis=axis, **({"block_size": 32} if per == "block" else {}))
    attributes = {}
    if transposed and op == "Gemm":
        attributes["transB"] = 1
    elif transposed:
        w = b.op("Transpose", w, perm=[1, 0])
    inputs = [x, w]
    if op == "Gemm":
        inputs.append(b.constant("bias", rng.standard_normal(N).astype(np.float32)))
    b.output(b.op(op, *inputs, **attributes), ["m", N])
    return ir.to_proto(b.model(11)).SerializeToString(), W


@all_pairs(
    {
        "format": ["e4m3fn", "e5m2"],
        "per": ["tensor", "column", "block"],
        "transposed": [False, True],
        "op": ["MatMul", "Gemm"],
    }
)
def test_standard_models(format, per, transposed, op):
    if ort.__version__.startswith("1.23.") and (op, transposed) == ("MatMul", True) and per != "block":
        pytest.skip("ONNX Runtime 1.23 moves the Transpose by a QuantizeLinear that it does not have")
    model, W = dequantized(format, per, transposed=transposed, op=op, zero_points=per != "block")
    opened = on_provider(model)
    stock = ort.InferenceSession(model, options(), providers=["CPUExecutionProvider"])
    for M in (1, 9):
        A = np.random.default_rng(M).standard_normal((M, 96)).astype(np.float32)
        want = stock.run(None, {"A": A})[0]
        np.testing.assert_allclose(opened.run(None, {"A": A})[0], want, atol=1e-5 * np.abs(W).max() * 96)
    if KNOWS_WHO_RUNS_WHAT:  # ONNX Runtime may have turned the constants itself
        assert set(taken(opened)) - {"Transpose"} == {"DequantizeLinear", op}


def test_bits_of_a_standard_model():
    """One row of the identity gives the weight to the last bit."""
    model, W = dequantized("e4m3fn", "block")
    np.testing.assert_array_equal(on_provider(model).run(None, {"A": np.eye(96, dtype=np.float32)})[0], W)


def test_codes_that_are_no_numbers_are_left():
    model, _ = dequantized("e4m3fn", "column", wrong=0x7F)
    assert taken(on_provider(model)) in (None, [])
