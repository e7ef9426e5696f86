"""Models that scheme sparse converts, and what of them the reference says."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from graphs import Builder, weight
from onnxpress.custom_ops import reference
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.calibration import Calibration
from sessions import options

LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
K, N = 62, 48


def converted(model, calibration=None, **values):
    recipe = Recipe(scheme="sparse", **values)
    return optimize(model, recipe, calibration=Calibration(calibration) if calibration is not None else None)


def run(model, feeds, level=LEVELS[1]):
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), options(graph_optimization_level=level))
    return session.run(None, feeds)


def batch(rows=5, columns=K, seed=3):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def samples(columns=K, count=16):
    """Correlated inputs that are not zero on average."""
    rng = np.random.default_rng(5)
    mixed = np.eye(columns) + rng.standard_normal((columns, columns)) * 0.1
    return [{"x": (batch(20, columns, seed) @ mixed + 0.5).astype(np.float32)} for seed in range(count)]


def sparse_nodes(model):
    return {node.name: node for node in model.graph if node.op_type == "BlockSparseMatMul"}


def array(node, index):
    value = node.inputs[index] if index < len(node.inputs) else None
    return value.const_value.numpy() if value is not None else None


def dense(node):
    """The weight a node stands for."""
    values, indices, offsets = (array(node, index) for index in (1, 2, 3))
    codes = reference.decode_blocks(values, indices, offsets, *(node.attributes[key].value for key in "KN"))
    return codes if values.dtype == np.float32 else codes * array(node, 4)


def expected(node, x):
    return reference.block_sparse_matmul(
        x, *(array(node, index) for index in range(1, 6)), K=node.attributes["K"].value, N=node.attributes["N"].value,
        activation=node.attributes["activation"].value, a_scale=array(node, 6), a_zero_point=array(node, 7),
    )  # fmt: skip


def product(activation=None, bias=True, opset=18):
    b = Builder(opset)
    y = b.op("MatMul", b.input("x", ["m", K]), b.constant("W", weight(K, N)), name="product")
    if bias:
        y = b.op("Add", b.constant("b", weight(1, N, 1)[0]), y, name="sum")
    y = activation(b, y) if activation else y
    b.output(y, ["m", N])
    return b.model()


def one_product(W):
    b = Builder()
    b.output(b.op("MatMul", b.input("x", ["m", W.shape[0]]), b.constant("W", W), name="product"), ["m", W.shape[1]])
    return b.model()


def three_layers():
    b = Builder()
    y = b.input("x", ["m", 64])
    for index in range(3):
        y = b.op("MatMul", y, b.constant(f"W{index}", weight(64, 64, index)), name=f"layer{index}")
    b.output(y, ["m", 64])
    return b.model()


def pruned(block=(4, 4), share=0.7, shape=(K, N), seed=0):
    rng = np.random.default_rng(seed)
    k, n = block
    mask = rng.random((-(-shape[0] // k), -(-shape[1] // n))) >= share
    return np.where(np.kron(mask, np.ones(block))[: shape[0], : shape[1]] > 0, weight(*shape), 0).astype(np.float32)
