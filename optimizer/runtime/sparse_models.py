"""Models of one block-sparse product, and of the dense ones that it is measured against."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxpress.custom_ops import functions

from ..sparsity import Block, Compressed, encode, occupied
from .kernel_case import Case
from .kernel_models import MOST_CODE, Graph


def random_weight(K: int, N: int, block: Block, sparsity: float, seed: int = 0) -> npt.NDArray[np.int8]:
    """An int8 weight [K, N] of which this share of the blocks, anywhere, is zero."""
    rng = np.random.default_rng(seed)
    rows, columns = block.grid((K, N))
    mask = np.zeros(rows * columns, np.bool_)
    mask[rng.permutation(mask.size)[: round(mask.size * (1 - sparsity))]] = True
    kept = np.repeat(np.repeat(mask.reshape(rows, columns).T, block.k, axis=0), block.n, axis=1)[:K, :N]
    codes = rng.integers(1, MOST_CODE + 1, (K, N), dtype=np.int8) * rng.choice(np.array([-1, 1], np.int8), (K, N))
    weight: npt.NDArray[np.int8] = np.where(kept, codes, np.int8(0))
    return weight


def compress(weight: npt.NDArray[Any], block: Block) -> Compressed:
    """The blocks of a weight that are not all zeros."""
    return encode(weight, occupied(weight, block), block)


def _graph(K: int, N: int) -> Graph:
    return Graph(Case(0, K, N, 8, 0, "dynamic_matmul"))


A_SCALE, W_SCALE, MIDDLE = 0.03, 0.01, 128
"""Of the codes of activations of unit variance, of a weight's, and the zero point of activations and outputs."""


def y_scale(K: int) -> float:
    """Of the codes of outputs."""
    return float(A_SCALE * W_SCALE * (MOST_CODE + 1) * K**0.5)


def sparse_model(weight: Compressed, K: int, N: int, *, codes: bool = False) -> bytes:
    """A serialized BlockSparseMatMul [m, K] -> [m, N].

    Args:
        weight: int8 or float32.
        K: Length of the reduction.
        N: Output channels.
        codes: Of uint8 codes to uint8 codes, by an int8 weight; else of float32, activations rounded row by row.
    """
    g = _graph(K, N)
    g.graph.opset_imports[functions.DOMAIN] = functions.OPSET
    names = ("values", "indices", "offsets")
    inputs: list[ir.Value | None] = [g.constant(name, getattr(weight, name)) for name in names]
    if weight.values.dtype == np.int8:
        inputs.append(g.constant("scales", np.full(N, W_SCALE, np.float32)))
    if codes:
        g.a.type = ir.TensorType(ir.DataType.UINT8)
        middle = g.constant("middle", np.array(MIDDLE, np.uint8))
        scales = [g.constant(f"scale{i}", np.array(each, np.float32)) for i, each in enumerate((A_SCALE, y_scale(K)))]
        inputs += [None, scales[0], middle, scales[1], middle]
    block_n, block_k = weight.values.shape[1:]
    g.output(
        g.op(
            "BlockSparseMatMul", g.a, *inputs, domain=functions.DOMAIN, K=K, N=N, block_k=block_k, block_n=block_n,
            activation="",
        )[0],
        ir.DataType.UINT8 if codes else ir.DataType.FLOAT,
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
    factor = g.op("Mul", a_scale, g.constant("scales", np.full(N, W_SCALE, np.float32)))
    g.output(g.op("Mul", *g.op("Cast", *sums, to=int(ir.DataType.FLOAT)), *factor)[0])
    return g.serialized()


def qlinear_model(weight: npt.NDArray[np.int8]) -> bytes:
    """A serialized QLinearMatMul of uint8 codes with this weight [K, N], to uint8 codes."""
    K, N = weight.shape
    g = _graph(K, N)
    g.a.type = ir.TensorType(ir.DataType.UINT8)
    middle = g.constant("middle", np.array(MIDDLE, np.uint8))
    scales = [g.constant(f"scale{i}", np.array(each, np.float32)) for i, each in enumerate((A_SCALE, y_scale(K)))]
    w = (
        g.constant("W", weight),
        g.constant("scales", np.full(N, W_SCALE, np.float32)),
        g.constant("zeros", np.zeros(N, np.int8)),
    )
    g.output(g.op("QLinearMatMul", g.a, scales[0], middle, *w, scales[1], middle)[0], ir.DataType.UINT8)
    return g.serialized()
