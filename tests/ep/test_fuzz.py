"""Nodes with wrong attributes, types and shapes: an error or the right numbers, never a crash or a wrong result."""

from __future__ import annotations

import dataclasses

import graphs
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from child import CrashError
from contexts import nbits_model
from fuzzing import HUGE, SETTINGS, close, spoiled
from hypothesis import assume, given
from hypothesis import strategies as st
from onnxpress import ep
from onnxpress.custom_ops import reference
from sessions import KNOWS_WHO_RUNS_WHAT, options


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


@pytest.mark.skipif(not KNOWS_WHO_RUNS_WHAT, reason="ONNX Runtime 1.23 does not tell who runs what")
@pytest.mark.parametrize("value", [1.5, "x", [1]])
def test_an_attribute_of_another_type_leaves_its_node_alone(value):
    """Nobody but us checks those of our own operators; the other node is taken."""
    proto = ir.to_proto(nbits_model(3, count=2))
    node = next(node for node in proto.graph.node if node.name == "product1")
    for attribute in list(node.attribute):
        if attribute.name == "accuracy_level":
            node.attribute.remove(attribute)
    node.attribute.append(onnx.helper.make_attribute("accuracy_level", value))
    assert ep.assigned_nodes(ep.session(proto.SerializeToString(), options()))[ep.NAME] == ["product0"]
