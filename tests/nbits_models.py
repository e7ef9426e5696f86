"""Models of one MatMulNBits, and what runs their nodes."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
from onnxpress import ep
from onnxpress.custom_ops import reference
from sessions import KNOWS_WHO_RUNS_WHAT

K, N = 96, 37


def make(
    *, bits=4, block_size=32, level=0, activation=np.float32, zero_points=None, bias=None, domain="com.microsoft",
    g_idx=False, constant=True, flat=False, scale=None, **attributes,
):  # fmt: skip
    """A model of one node, its weight and its bias."""
    rng = np.random.default_rng(5)
    scale, blocks = scale or activation, -(-K // block_size)
    codes = reference.pack_codes(rng.integers(0, 2**bits, (N, blocks, block_size), dtype=np.uint8), bits)
    scales = rng.uniform(0.01, 0.02, (N, blocks)).astype(scale)
    arrays = {"B": codes, "scales": scales.reshape(-1) if flat else scales}
    if zero_points == "packed":
        points = reference.pack_zero_points(rng.integers(0, 2**bits, (N, blocks), dtype=np.uint8), bits)
        arrays["zero_points"] = points.reshape(-1) if flat else points
    elif zero_points == "float":
        arrays["zero_points"] = rng.uniform(0, 2**bits, (N, blocks)).astype(scale)
    if g_idx:
        arrays["g_idx"] = np.arange(K, dtype=np.int32) // block_size
    values = rng.standard_normal(N).astype(activation)
    b = graphs.Builder()
    kind = ir.DataType.from_numpy(np.dtype(activation))
    inputs = [b.input("A", ["m", K], kind)]
    order = ("B", "scales", "zero_points", "g_idx") if domain == "com.microsoft" else ("B", "scales", "zero_points")
    for name in order:
        if name not in arrays:
            inputs.append(None)
        elif constant:
            inputs.append(b.constant(name, arrays[name]))
        else:
            inputs.append(b.input(name, arrays[name].shape, ir.DataType.from_numpy(arrays[name].dtype)))
    if bias == "constant":
        inputs.append(b.constant("bias", values))
    elif bias == "input":
        inputs.append(b.input("bias", [N], kind))
    while inputs[-1] is None:
        inputs.pop()
    settings = {"K": K, "N": N, "bits": bits, "block_size": block_size, "accuracy_level": level} | attributes
    b.output(b.op("MatMulNBits", *inputs, name="the_node", domain=domain, **settings), ["m", N], kind)
    b.graph.opset_imports[domain] = 1
    W = reference.dequantize(
        codes, scales.astype(np.float32), arrays.get("zero_points") if zero_points == "float" or not flat else points,
        bits=bits, block_size=block_size, K=K,
    )  # fmt: skip
    return ir.to_proto(b.model(10)).SerializeToString(), W, values if bias else np.zeros(N, activation), arrays


def rows(M=5, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal((M, K)).astype(dtype)


def taken(session):
    """Whether the node is on the execution provider; unknown, so None, before ONNX Runtime 1.24."""
    return "the_node" in ep.assigned_nodes(session).get(ep.NAME, []) if KNOWS_WHO_RUNS_WHAT else None


def feeds_of(session, A, bias, arrays):
    known = {"A": A, "bias": bias, **arrays}
    return {value.name: known[value.name] for value in session.get_inputs()}
