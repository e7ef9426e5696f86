"""Models of one block-sparse product, and of the dense ones that it is measured against."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxpress.custom_ops import functions

from ..sparsity import Block, Compressed, encode, occupied
from .kernel_models import Case, Graph


def random_weight(K: int, N: int, block: Block, sparsity: float, seed: int = 0) -> npt.NDArray[np.int8]:
    """An int8 weight [K, N] of which this share of the blocks, anywhere, is zero."""
    rng = np.random.default_rng(seed)
    rows, columns = block.grid((K, N))
    mask = np.zeros(rows * columns, np.bool_)
    mask[rng.permutation(mask.size)[: round(mask.size * (1 - sparsity))]] = True
    kept = np.repeat(np.repeat(mask.reshape(rows, columns).T, block.k, axis=0), block.n, axis=1)[:K, :N]
    codes = rng.integers(1, 128, (K, N), dtype=np.int8) * rng.choice(np.array([-1, 1], np.int8), (K, N))
    weight: npt.NDArray[np.int8] = np.where(kept, codes, np.int8(0))
    return weight


def compress(weight: npt.NDArray[Any], block: Block) -> Compressed:
    """The blocks of a weight that are not all zeros."""
    return encode(weight, occupied(weight, block), block)


def _graph(K: int, N: int) -> Graph:
    return Graph(Case(0, K, N, 8, 0, "dynamic_matmul"))


def sparse_model(weight: Compressed, K: int, N: int) -> bytes:
    """A serialized BlockSparseMatMul [m, K] -> [m, N] of float32.

    Args:
        weight: int8, activations are rounded row by row; or float32.
        K: Length of the reduction.
        N: Output channels.
    """
    g = _graph(K, N)
    g.graph.opset_imports[functions.DOMAIN] = functions.OPSET
    inputs = [g.constant(name, getattr(weight, name)) for name in ("values", "indices", "offsets")]
    if weight.values.dtype == np.int8:
        inputs.append(g.constant("scales", np.full(N, 0.01, np.float32)))
    block_n, block_k = weight.values.shape[1:]
    g.output(
        g.op(
            "BlockSparseMatMul", g.a, *inputs, domain=functions.DOMAIN, K=K, N=N, block_k=block_k, block_n=block_n,
            activation="",
        )[0]
    )  # fmt: skip
    return g.serialized()


def float_model(weight: npt.NDArray[np.float32]) -> bytes:
    """A serialized MatMul with this weight [K, N]."""
    g = _graph(*weight.shape)
    g.output(g.op("MatMul", g.a, g.constant("W", weight))[0])
    return g.serialized()


def int8_model(weight: npt.NDArray[np.int8]) -> bytes:
    """A serialized product with this weight [K, N], of activations that are rounded at run time, in standard ops."""
    K, N = weight.shape
    g = _graph(K, N)
    a, a_scale, a_zero_point = g.op("DynamicQuantizeLinear", g.a, outputs=3)
    sums = g.op("MatMulInteger", a, g.constant("W", weight), a_zero_point, g.constant("zeros", np.zeros(N, np.int8)))
    factor = g.op("Mul", a_scale, g.constant("scales", np.full(N, 0.01, np.float32)))
    g.output(g.op("Mul", *g.op("Cast", *sums, to=int(ir.DataType.FLOAT)), *factor)[0])
    return g.serialized()
