"""Nodes with wrong attributes, types and shapes: an error or the right numbers, never a crash or a wrong result."""

from __future__ import annotations

import dataclasses

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from child import Child, CrashError
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnxpress.custom_ops import reference

SETTINGS = settings(
    derandomize=True, deadline=None, max_examples=150, database=None, suppress_health_check=list(HealthCheck)
)
HUGE = 2**40
TYPES = (np.float32, np.float16, np.float64, np.int8, np.int32)


@pytest.fixture(scope="module")
def child():
    made = Child()
    yield made
    made.close()


@st.composite
def spoiled(draw, array: np.ndarray) -> np.ndarray:
    """The same values with another shape or type, or some of them missing."""
    how = draw(st.sampled_from(["drop", "flat", "turn", "type", "empty", "axis"]))
    if how == "drop":
        axis = draw(st.integers(0, array.ndim - 1))
        return np.delete(array, -1, axis) if array.shape[axis] else array
    if how == "flat":
        return array.reshape(-1)
    if how == "turn":
        return np.ascontiguousarray(array.T)
    if how == "type":
        return array.astype(draw(st.sampled_from(TYPES)))
    if how == "empty":
        return array[:0]
    return array[None]


@dataclasses.dataclass
class Product:
    """A node MatMulNBits."""

    domain: str
    attributes: dict[str, int]
    arrays: dict[str, np.ndarray]
    constant: bool  # all but A
    whole: bool  # nothing was spoiled

    def model(self) -> bytes:
        b = graphs.Builder(21)
        order = ["A", "B", "scales", "zero_points", *(["g_idx"] if self.domain == "com.microsoft" else []), "bias"]
        inputs = []
        for name in order:
            array = self.arrays.get(name)
            if array is None:
                inputs.append(None)
            elif self.constant and name != "A":
                inputs.append(b.constant(name, array))
            else:
                inputs.append(b.input(name, list(array.shape), ir.DataType.from_numpy(array.dtype)))
        while inputs and inputs[-1] is None:
            inputs.pop()
        y = b.op("MatMulNBits", *inputs, domain=self.domain, **self.attributes)
        b.output(y, ["m", "n"], ir.DataType.from_numpy(self.arrays["scales"].dtype))
        b.graph.opset_imports[self.domain] = 1
        return ir.to_proto(b.model(10)).SerializeToString()

    def feeds(self) -> dict[str, np.ndarray]:
        return {name: array for name, array in self.arrays.items() if name == "A" or not self.constant}

    def meaning(self) -> np.ndarray | None:
        """What it gives, whatever the shapes are, as long as the sizes fit; None where they do not."""
        try:
            return self._compute()
        except (ValueError, KeyError):
            return None

    def _compute(self) -> np.ndarray:
        K, N, bits, block_size = (self.attributes[key] for key in ("K", "N", "bits", "block_size"))
        if not (0 < K < 1000 and 0 < N < 1000 and 2 <= bits <= 8 and 0 < block_size < 1000):
            raise ValueError("sizes")
        arrays, blocks = self.arrays, -(-K // block_size)
        if arrays["B"].dtype != np.uint8:
            raise ValueError("type")
        points = arrays.get("zero_points")
        none = np.zeros((N, blocks), np.uint8)
        W = reference.dequantize(
            arrays["B"].reshape(N, blocks, block_size * bits // 8),
            arrays["scales"].astype(np.float32).reshape(N, blocks),
            None if points is None else points.reshape(reference.pack_zero_points(none, bits).shape),
            bits=bits, block_size=block_size, K=K,
        )  # fmt: skip
        A = arrays["A"].astype(np.float32)
        bias = arrays.get("bias", np.zeros(N)).astype(np.float32).reshape(N)
        if A.ndim == 0 or A.shape[-1] != K:
            raise ValueError("K")
        return A @ W + bias


@st.composite
def products(draw) -> Product:
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    domain = draw(st.sampled_from(["com.microsoft", "onnxpress"]))
    bits = draw(st.sampled_from([2, 4, 8] if domain == "com.microsoft" else [2, 3, 4, 5, 6, 7, 8]))
    block_size = draw(st.sampled_from([16, 32, 64, 128, 256]))
    K, N, M = draw(st.integers(1, 200)), draw(st.integers(1, 70)), draw(st.integers(0, 7))
    kind = draw(st.sampled_from([np.float32, np.float16]))
    blocks = -(-K // block_size)
    arrays = {
        "A": rng.standard_normal((M, K)).astype(kind),
        "B": reference.pack_codes(rng.integers(0, 2**bits, (N, blocks, block_size), dtype=np.uint8), bits),
        "scales": rng.uniform(0.01, 0.02, (N, blocks)).astype(kind),
    }
    if draw(st.booleans()):
        points = rng.integers(0, 2**bits, (N, blocks), dtype=np.uint8)
        arrays["zero_points"] = reference.pack_zero_points(points, bits)
    if draw(st.booleans()):
        arrays["bias"] = rng.standard_normal(N).astype(kind)
    attributes = {"K": K, "N": N, "bits": bits, "block_size": block_size, "accuracy_level": 0}
    spoil = draw(st.sampled_from(["nothing", "nothing", "attribute", "array", "absent"]))
    if spoil == "attribute":
        key = draw(st.sampled_from(sorted(attributes)))
        near = attributes[key] + draw(st.sampled_from([-1, 1, 8, 16]))
        attributes[key] = draw(st.sampled_from([0, -1, 1, 9, 24, 512, HUGE, -HUGE, 2**63 - 1, near]))
    elif spoil == "array":
        key = draw(st.sampled_from(sorted(arrays)))
        arrays[key] = draw(spoiled(arrays[key]))
    elif spoil == "absent":
        del arrays["B"]
    constant = draw(st.sampled_from([True, True, False]))
    return Product(domain, attributes, arrays, constant, spoil == "nothing")


@st.composite
def dequantized(draw):
    """DequantizeLinear and a product: a model and its inputs."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    K, N, M = draw(st.integers(1, 12)) * 16, draw(st.integers(1, 60)), draw(st.integers(1, 5))
    transposed, gemm = draw(st.booleans()), draw(st.booleans())
    code = draw(st.sampled_from([np.int8, np.uint8]))
    info = np.iinfo(code)
    along_k = 1 if transposed else 0
    shape = (N, K) if transposed else (K, N)
    attributes = draw(st.sampled_from([{}, {"axis": 1 - along_k}, {"axis": along_k, "block_size": 16}]))
    scale_shape: tuple[int, ...] = () if not attributes else (N,)
    if "block_size" in attributes:
        scale_shape = (N, K // 16) if transposed else (K // 16, N)
    arrays = {
        "W": rng.integers(info.min, info.max + 1, shape).astype(code),
        "scale": rng.uniform(0.01, 0.02, scale_shape).astype(np.float32),
    }
    if draw(st.booleans()):
        arrays["zero"] = rng.integers(info.min, info.max + 1, scale_shape).astype(code)
    if draw(st.booleans()):
        if draw(st.booleans()):
            key = draw(st.sampled_from(["axis", "block_size"]))
            attributes = attributes | {key: draw(st.sampled_from([-3, -2, -1, 0, 1, 2, 8, 24, 32, HUGE, -HUGE]))}
        else:
            key = draw(st.sampled_from(sorted(arrays)))
            arrays[key] = draw(spoiled(np.atleast_1d(arrays[key])))
    b = graphs.Builder(21)
    a = rng.standard_normal((M, K)).astype(np.float32)
    weight = b.op("DequantizeLinear", *[b.constant(name, array) for name, array in arrays.items()], **attributes)
    if transposed and not gemm:
        weight = b.op("Transpose", weight, perm=[1, 0])
    x = b.input("A", [M, K])
    y = b.op("Gemm", x, weight, transB=int(transposed)) if gemm else b.op("MatMul", x, weight)
    if draw(st.booleans()):
        bias = rng.standard_normal(N).astype(np.float32)
        y = b.op("Add", y, b.constant("bias", draw(spoiled(bias)) if draw(st.booleans()) else bias))
    b.output(y, ["m", "n"])
    return ir.to_proto(b.model(10)).SerializeToString(), {"A": a}


SMALL = {np.int8: (-60, 60), np.uint8: (0, 120)}  # ONNX Runtime's kernels for AVX2 saturate sums of two products


def eight_bits(rng, kind, shape):
    """Codes of a weight."""
    low, high = SMALL[kind]
    return rng.integers(low, high + 1, shape).astype(kind)


def any_code(rng, kind, shape):
    info = np.iinfo(kind)
    return rng.integers(info.min, info.max + 1, shape).astype(kind)


def constants(draw, rng, b, arrays):
    """Those of the graph, one of them sometimes spoiled, or an input that has a value, or absent."""
    how = draw(st.sampled_from(["whole", "whole", "spoiled", "input", "absent"]))
    key = draw(st.sampled_from(sorted(arrays)))
    made, feeds = {}, {}
    for name, array in arrays.items():
        given = draw(spoiled(np.atleast_1d(array))) if how == "spoiled" and name == key else array
        if how == "input" and name == key:
            made[name] = b.input(name, list(array.shape), ir.DataType.from_numpy(array.dtype))
            feeds[name] = array
        elif how != "absent" or name != key or "zero" not in name:
            made[name] = b.constant(name, given)
    return made, feeds


@st.composite
def qdq(draw):
    """A QDQ group: a model and its inputs."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    K, N, M = draw(st.integers(1, 150)), draw(st.integers(1, 60)), draw(st.integers(0, 5))
    code, weight = draw(st.sampled_from([np.int8, np.uint8])), draw(st.sampled_from([np.int8, np.uint8]))
    transposed, gemm, rounds, per_column = (draw(st.booleans()) for _ in range(4))
    shape = (N,) if per_column else ()
    b = graphs.Builder(21)
    made, feeds = constants(draw, rng, b, {
        "W": eight_bits(rng, weight, (N, K) if transposed else (K, N)),
        "scale": rng.uniform(0.001, 0.01, shape).astype(np.float32),
        "zero": eight_bits(rng, weight, shape),
        "a_scale": np.array(0.02, np.float32),
        "a_zero": any_code(rng, code, ()),
        "y_scale": np.array(0.1, np.float32),
        "y_zero": any_code(rng, code, ()),
        "bias": rng.standard_normal(N).astype(np.float32),
    })  # fmt: skip
    a_format, y_format = ([made[f"{name}_scale"], made.get(f"{name}_zero")] for name in "ay")
    kind = np.float32 if rounds else code
    x = b.input("A", [M, K], ir.DataType.from_numpy(np.dtype(kind)))
    feeds["A"] = rng.standard_normal((M, K)).astype(kind) if rounds else any_code(rng, code, (M, K))
    if rounds:
        x = b.op("QuantizeLinear", x, *a_format)
    x = b.op("DequantizeLinear", x, *a_format)
    axis = int(not transposed) if draw(st.booleans()) else draw(st.sampled_from([-3, -2, -1, 0, 1, 2, HUGE]))
    block = draw(st.sampled_from([{}, {}, {}, {"block_size": 16}, {"block_size": -HUGE}]))
    w = b.op("DequantizeLinear", made["W"], made["scale"], made.get("zero"), axis=axis, **block)
    if transposed and not gemm:
        w = b.op("Transpose", w, perm=[1, 0])
    own = [made["bias"]] if draw(st.booleans()) else []
    if gemm:
        y = b.op("Gemm", x, w, *own, transB=int(transposed), alpha=draw(st.sampled_from([1.0, 1.0, 2.0])))
    else:
        y = b.op("MatMul", x, w)
        y = b.op("Add", y, *own) if own else y
    result = np.float32
    if draw(st.booleans()):
        result = code if "y_zero" in made else np.uint8
        y = b.op("QuantizeLinear", y, *y_format)
    b.output(y, ["m", "n"], ir.DataType.from_numpy(np.dtype(result)))
    return ir.to_proto(b.model(10)).SerializeToString(), feeds


@st.composite
def dynamic(draw):
    """Activations that are rounded at run time, and a product: a model and its inputs."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    K, N, M = draw(st.integers(1, 150)), draw(st.integers(1, 60)), draw(st.integers(0, 5))
    form = draw(st.sampled_from(["chain", "chain", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"]))
    weight, shape = draw(st.sampled_from([np.int8, np.uint8])), draw(st.sampled_from([(), (N,)]))
    b = graphs.Builder(17)
    made, feeds = constants(draw, rng, b, {
        "W": eight_bits(rng, weight, (K, N)),
        "scale": rng.uniform(0.001, 0.01, shape).astype(np.float32),
        "zero": eight_bits(rng, weight, shape),
        "bias": rng.standard_normal(N).astype(np.float32),
    })  # fmt: skip
    W, scale, zero, own = made["W"], made["scale"], made.get("zero"), draw(st.booleans())
    x = b.input("A", [M, K])
    feeds["A"] = rng.standard_normal((M, K)).astype(np.float32)
    contrib = {"domain": "com.microsoft"}
    if form == "DynamicQuantizeMatMul":
        y = b.op(form, x, W, scale, zero, *([made["bias"]] if own else []), **contrib)
    else:
        a, a_scale, a_zero = b.op("DynamicQuantizeLinear", x, outputs=3)
        if draw(st.booleans()):  # others read the codes
            b.output(a, ["m", "k"], ir.DataType.UINT8)
        if form == "chain":
            y = b.op("Cast", b.op("MatMulInteger", a, W, a_zero, zero), to=int(ir.DataType.FLOAT))
            order = draw(st.sampled_from(["one by one", "scales first", "twice the same"]))
            first = b.op("Mul", a_scale, scale) if order == "scales first" else scale
            y = b.op("Mul", first, y)
            if order != "scales first":
                y = b.op("Mul", y, a_scale if order == "one by one" else scale)
            y = b.op("Add", y, made["bias"]) if own else y
        else:
            y = b.op(form, a, W, a_scale, scale, a_zero, zero, *([made["bias"]] if own else []), **contrib)
    b.output(y, ["m", "n"])
    b.graph.opset_imports["com.microsoft"] = 1
    return ir.to_proto(b.model(9)).SerializeToString(), feeds


def close(got: np.ndarray, want: np.ndarray) -> bool:
    if np.issubdtype(got.dtype, np.integer):  # codes, which a tie may bring to either side
        return got.shape == want.shape and np.allclose(got, want, rtol=0, atol=1)
    rtol = 2e-2 if got.dtype == np.float16 else 2e-4
    return got.shape == want.shape and np.allclose(got.astype(np.float64), want, rtol=rtol, atol=rtol)


@SETTINGS
@given(products())
def test_matmul_nbits(child, product):
    ours = product.domain == "onnxpress"
    for provider in (True, False) if ours else (True,):
        got = child.run(product.model(), product.feeds(), provider=provider)  # a crash fails the test
        if isinstance(got, str):
            assert not (product.whole and (ours or product.constant)), got
            continue
        wanted = product.meaning()
        if wanted is not None:
            assert close(got[0], wanted)
        else:  # what we leave to ONNX Runtime it may take in its own way
            assert not ours
            stock = child.run(product.model(), product.feeds(), provider=False, ops=False)
            assert not isinstance(stock, str), stock
            assert close(got[0], stock[0].astype(np.float64))


@SETTINGS
@given(dequantized())
def test_dequantized_matmul(child, product):
    model, feeds = product
    got = child.run(model, feeds, provider=True)
    try:
        stock = child.run(model, feeds, provider=False)
    except CrashError:
        assume(False)
    assert isinstance(got, str) == isinstance(stock, str), (got, stock)
    assert isinstance(got, str) or close(got[0], stock[0].astype(np.float64))


@SETTINGS
@given(st.one_of(qdq(), dynamic()))
def test_products_of_8_bits(child, product):
    model, feeds = product
    try:
        stock = child.run(model, feeds, provider=False)
    except CrashError:  # as it does without scales
        assume(False)
    got = child.run(model, feeds, provider=True)
    assert isinstance(got, str) == isinstance(stock, str), (got, stock)
    assert isinstance(got, str) or all(close(a, b.astype(np.float64)) for a, b in zip(got, stock, strict=True))
