"""Products of matrices and recurrent layers, with what stands around them in exported models."""

from __future__ import annotations

import numpy as np

from .sketch import Sketch, Unfit, Value

_WIDTHS = (1, 16, 32, 33, 48, 64, 64)  # mostly of products that are large enough to round


def matmul(s: Sketch) -> Value:
    """MatMul with a weight on either side, of rank 2 or 3, written in several ways, and a bias behind it."""
    x = s.matrix()
    K, N = x.shape[-1], s.one_of(*_WIDTHS)
    how = s.one_of("plain", "plain", "plain", "transposed", "batched", "cast", "left")
    if how == "left" and x.rank == 2:
        M = s.one_of(8, 16)
        y = s.op("MatMul", [s.constant(s.grid(M, x.shape[0], rows=1)), x], (M, x.shape[1]))
    elif how == "transposed":
        weight = s.op("Transpose", [s.constant(s.grid(N, K, rows=1))], (K, N), perm=[1, 0], keep=False)
        y = s.op("MatMul", [x, weight], (*x.shape[:-1], N))
    elif how == "batched":
        y = s.op("MatMul", [x, s.constant(s.grid(1, K, N, rows=1))], (*((1,) * (3 - x.rank)), *x.shape[:-1], N))
    elif how == "cast" and s.dtype == np.float32:
        weight = s.op("Cast", [s.constant(s.grid(K, N), dtype=np.float16)], (K, N), to=1, keep=False)
        y = s.op("MatMul", [x, weight], (*x.shape[:-1], N))
    else:
        y = s.op("MatMul", [x, s.constant(s.grid(K, N))], (*x.shape[:-1], N))
    return _biased(s, y) if s.chance(0.5) else y


def _biased(s: Sketch, y: Value) -> Value:
    bias = s.constant(s.rng.standard_normal(s.one_of(y.shape[-1:], (1, y.shape[-1]), ())))
    return s.op("Add", [y, bias] if s.chance(0.7) else [bias, y], y.shape)


def gemm(s: Sketch) -> Value:
    x = s.pick(2, where=lambda v: v.shape[-1] >= 2) or s.input(s.between(1, 4), 32)
    transA, transB = s.chance(0.15), s.chance(0.5)
    M, K = x.shape[::-1] if transA else x.shape
    N = s.one_of(*_WIDTHS)
    weight = s.grid(N, K, rows=1) if transB else s.grid(K, N)
    names: list = [x, s.constant(weight)]
    if s.chance(0.7) or s.opset < 11:
        shape = s.one_of((N,), (1, N), (1,), (), (M, 1), (M, N))
        names.append(s.constant(np.zeros(shape) if s.chance(0.25) else s.rng.standard_normal(shape)))
    return s.op("Gemm", names, (M, N), transA=int(transA) or None, transB=int(transB) or None,
                alpha=s.one_of(None, None, 0.5), beta=s.one_of(None, None, 2.0, 0.0))  # fmt: skip


def of_activations(s: Sketch) -> Value:
    x = s.matrix()
    axes = list(range(x.rank))
    axes[-1], axes[-2] = axes[-2], axes[-1]
    t = s.op("Transpose", [x], [x.shape[a] for a in axes], perm=axes, keep=False)
    y = s.op("MatMul", [x, t], (*x.shape[:-1], x.shape[-2]))
    return s.op("Mul", [y, s.constant(np.float64(0.125))], y.shape)


def between_reshapes(s: Sketch) -> Value:
    """What exporters of old wrote for a product of rank 3."""
    x = s.matrix()
    if x.rank != 3:
        raise Unfit
    b, m, k = x.shape
    N = s.one_of(8, 32)
    flat = s.op("Reshape", [x, s.ints(-1, k)], (b * m, k))
    y = s.op("MatMul", [flat, s.constant(s.grid(k, N))], (b * m, N))
    return s.op("Reshape", [y, s.ints(b, m, N)], (b, m, N))


def table(s: Sketch) -> Value:
    """An embedding by an input of token numbers."""
    rows, width = s.one_of(10, 40), s.one_of(16, 32)
    owner = s
    while owner.outer is not None:
        owner = owner.outer
    ids = Value(s.name("ids"), (2, 3), np.dtype(np.int64))
    owner.feeds[ids.name] = s.rng.integers(0, rows, ids.shape)
    return s.op("Gather", [s.constant(s.grid(rows, width, rows=1)), ids], (2, 3, width))


def lstm(s: Sketch) -> Value:
    x = s.pick(3, where=lambda v: v.shape[-1] >= 8) or s.input(3, 2, 16)
    length, batch, width = x.shape
    hidden = s.one_of(8, 16)
    kind, gates = s.one_of(("LSTM", 4), ("GRU", 3), ("RNN", 1))
    ways = s.one_of(1, 1, 2)
    names: list = [
        x,
        s.constant(np.stack([s.grid(gates * hidden, width, rows=1) / 8 for _ in range(ways)])),
        s.constant(np.stack([s.grid(gates * hidden, hidden, rows=1) / 8 for _ in range(ways)])),
    ]
    if s.chance(0.6):
        names.append(s.constant(s.rng.standard_normal((ways, 2 * gates * hidden)) / 4))
    direction = "bidirectional" if ways == 2 else s.one_of(None, "forward", "reverse")
    y = s.op(kind, names, (length, ways, batch, hidden), hidden_size=hidden, direction=direction,
             linear_before_reset=s.one_of(None, 1) if kind == "GRU" else None)  # fmt: skip
    if ways == 2:
        return y
    if s.opset < 13:
        return s.op("Squeeze", [y], (length, batch, hidden), axes=[1])
    return s.op("Squeeze", [y, s.ints(1)], (length, batch, hidden))


def einsum(s: Sketch) -> Value:
    s.since(12)
    x = s.matrix()
    N = s.one_of(8, 16)
    left = "bik" if x.rank == 3 else "ik"
    return s.op(
        "Einsum", [x, s.constant(s.grid(x.shape[-1], N))], (*x.shape[:-1], N), equation=f"{left},kj->{left[:-1]}j"
    )


def weight_of_parts(s: Sketch) -> Value:
    """A weight that is cut, joined or scaled from constants."""
    x = s.matrix()
    K, N = x.shape[-1], 16
    half = s.grid(K, N)
    how = s.one_of("Concat", "Slice", "Mul", "Gather", "Split", "Reshape")
    if how == "Concat":
        N *= 2
        weight = s.op(
            how, [s.constant(half, fixed=True), s.constant(s.grid(K, 16), fixed=True)], (K, N), axis=1, keep=False
        )
    elif how == "Slice" and s.opset >= 10:
        whole = s.constant(np.concatenate([half, half], 1), fixed=True)
        weight = s.op(how, [whole, s.ints(0), s.ints(16), s.ints(1)], (K, N), keep=False)
    elif how == "Mul":
        weight = s.op(how, [s.constant(half, fixed=True), s.constant(np.float64(0.5), fixed=True)], (K, N), keep=False)
    elif how == "Gather":
        whole = s.constant(np.stack([half, -half]), fixed=True)
        weight = s.op(how, [whole, s.constant(np.array(0))], (K, N), keep=False, axis=0)
    elif how == "Split" and s.opset >= 13:
        whole = s.constant(np.concatenate([half, half], 1), fixed=True)
        weight = s.op(how, [whole, s.ints(16, 16)], (K, N), keep=False, axis=1, more=1)
    else:
        weight = s.op("Reshape", [s.constant(half.reshape(-1), fixed=True), s.ints(K, N)], (K, N), keep=False)
    return s.op("MatMul", [x, weight], (*x.shape[:-1], N))


EMITTERS = (
    matmul,
    matmul,
    matmul,
    matmul,
    gemm,
    gemm,
    gemm,
    of_activations,
    between_reshapes,
    table,
    lstm,
    einsum,
    weight_of_parts,
)
