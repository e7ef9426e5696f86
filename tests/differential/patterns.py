"""What exporters write of many nodes and rewrites make one of: norms, activations, attention."""

from __future__ import annotations

import numpy as np

from .shapes import _axes
from .sketch import Sketch, Unfit, Value


def _mean(s: Sketch, x: Value, axis: int = -1) -> Value:
    shape = (*x.shape[:-1], 1)
    if s.opset >= 18:
        return s.op("ReduceMean", [x, s.ints(axis)], shape, keep=False)
    return s.op("ReduceMean", [x], shape, axes=[axis if s.opset >= 11 else x.rank - 1], keep=False)


def layer_norm(s: Sketch) -> Value:
    """In parts, or as one operator."""
    x = s.matrix()
    width = x.shape[-1]
    scale, bias = s.rng.uniform(0.5, 2, width), s.rng.standard_normal(width)
    epsilon = s.one_of(1e-12, 1e-6, 1e-5, 1e-3)
    if s.opset >= 17 and s.chance(0.3):
        names = [x, s.constant(scale), *([s.constant(bias)] if s.chance(0.7) else [])]
        return s.op("LayerNormalization", names, x.shape, axis=s.one_of(None, -1, x.rank - 1), epsilon=epsilon)
    if s.dtype == np.float16 and epsilon < 1e-5:
        raise Unfit
    centred = s.op("Sub", [x, _mean(s, x)], x.shape, keep=False)
    if s.chance(0.5):
        square = s.op("Mul", [centred, centred], x.shape, keep=False)
    else:
        square = s.op("Pow", [centred, s.constant(np.float64(2), fixed=True)], x.shape, keep=False)
    variance = _mean(s, square)
    safe = s.op("Add", [variance, s.constant(np.float64(epsilon))], variance.shape, keep=False)
    root = s.op("Sqrt", [safe], variance.shape, keep=False)
    y = s.op("Div", [centred, root], x.shape, keep=False)
    y = s.op("Mul", [y, s.constant(scale)], x.shape, keep=False)
    return s.op("Add", [y, s.constant(bias)], x.shape)


def gelu(s: Sketch) -> Value:
    x = s.any()
    s.since(9)
    kind = s.one_of("erf", "erf", "tanh", "one")
    if kind == "one":
        s.since(20)
        return s.op("Gelu", [x], x.shape, approximate=s.one_of(None, "none", "tanh"))
    if kind == "erf":
        h = s.op("Div", [x, s.constant(np.float64(2**0.5))], x.shape, keep=False)
        h = s.op("Erf", [h], x.shape, keep=False)
    else:
        h = s.op("Pow", [x, s.constant(np.float64(3))], x.shape, keep=False)
        h = s.op("Mul", [h, s.constant(np.float64(0.044715))], x.shape, keep=False)
        h = s.op("Add", [x, h], x.shape, keep=False)
        h = s.op("Mul", [h, s.constant(np.float64(0.7978845608))], x.shape, keep=False)
        h = s.op("Tanh", [h], x.shape, keep=False)
    h = s.op("Add", [h, s.constant(np.float64(1))], x.shape, keep=False)
    if s.chance(0.5):
        h = s.op("Mul", [x, h], x.shape, keep=False)
        return s.op("Mul", [h, s.constant(np.float64(0.5))], x.shape)
    half = s.op("Mul", [x, s.constant(np.float64(0.5))], x.shape, keep=False)
    return s.op("Mul", [half, h], x.shape)


def hard_swish(s: Sketch) -> Value:
    """With Clip or HardSigmoid, its numbers right or slightly other."""
    x = s.any()
    if s.chance(0.4):
        given = {"alpha": s.one_of(None, 1 / 6, 0.2), "beta": s.one_of(None, 0.5)}
        gate = s.op("HardSigmoid", [x], x.shape, **given)
        return s.op("Mul", [x, gate] if s.chance(0.5) else [gate, x], x.shape)
    h = s.op("Add", [x, s.constant(np.float64(s.one_of(3, 3, 2)))], x.shape, keep=False)
    top = float(s.one_of(6, 6, 5))
    if s.opset < 11:
        h = s.op("Clip", [h], x.shape, min=0.0, max=top, keep=False)
    else:
        h = s.op("Clip", [h, s.constant(np.float64(0)), s.constant(np.float64(top))], x.shape, keep=False)
    if s.chance(0.5):
        h = s.op("Mul", [x, h], x.shape, keep=False)
        return s.op("Div", [h, s.constant(np.float64(6))], x.shape)
    h = s.op("Div", [h, s.constant(np.float64(6))], x.shape, keep=False)
    return s.op("Mul", [x, h], x.shape)


def silu(s: Sketch) -> Value:
    x = s.any()
    gate = s.op("Sigmoid", [x], x.shape, keep=False)
    return s.op("Mul", [x, gate] if s.chance(0.5) else [gate, x], x.shape)


def gated(s: Sketch) -> Value:
    """Squeeze and excitation."""
    x = s.image()
    c = x.shape[1]
    h = s.op("GlobalAveragePool", [x], (*x.shape[:2], 1, 1), keep=False)
    h = s.op("Conv", [h, s.constant(s.grid(c, c, rows=1).reshape(c, c, 1, 1))], h.shape, keep=False)
    h = s.op(s.one_of("Sigmoid", "HardSigmoid"), [h], h.shape, keep=False)
    return s.op("Mul", [x, h], x.shape)


def attention(s: Sketch) -> Value:
    """Of an encoder: projections, heads, a scaled softmax, an additive mask."""
    x = s.matrix()
    if x.rank != 3 or x.shape[-1] % 4:
        raise Unfit
    b, m, k = x.shape
    heads = s.one_of(2, 4)

    def projected(order: list[int]) -> Value:
        h = s.op("MatMul", [x, s.constant(s.grid(k, k))], x.shape, keep=False)
        if s.chance(0.7):
            h = s.op("Add", [h, s.constant(s.rng.standard_normal(k))], x.shape, keep=False)
        h = s.op("Reshape", [h, s.ints(*s.one_of((b, m, heads, k // heads), (0, 0, heads, k // heads)))],
                 (b, m, heads, k // heads), keep=False)  # fmt: skip
        shape = [h.shape[axis] for axis in order]
        return s.op("Transpose", [h], shape, perm=order, keep=False)

    q, kt, v = projected([0, 2, 1, 3]), projected([0, 2, 3, 1]), projected([0, 2, 1, 3])
    scores = s.op("MatMul", [q, kt], (b, heads, m, m), keep=False)
    if s.chance(0.5):
        scores = s.op(
            "Div", [scores, s.constant(np.float64((k // heads) ** 0.5 * s.one_of(1, 1, 2)))], scores.shape, keep=False
        )
    else:
        scores = s.op("Mul", [scores, s.constant(np.float64((k // heads) ** -0.5))], scores.shape, keep=False)
    if s.chance(0.5):
        mask = np.where(s.rng.random((1, 1, 1, m)) < 0.7, 0.0, -1e4)
        scores = s.op("Add", [scores, s.constant(mask)], scores.shape, keep=False)
    weights = s.op("Softmax", [scores], scores.shape, axis=-1 if s.opset >= 11 else 3, keep=False)
    y = s.op("MatMul", [weights, v], (b, heads, m, k // heads), keep=False)
    y = s.op("Transpose", [y], (b, m, heads, k // heads), perm=[0, 2, 1, 3], keep=False)
    y = s.op("Reshape", [y, s.ints(b, m, k)], x.shape)
    return s.op("MatMul", [y, s.constant(s.grid(k, k))], x.shape)


def rms_norm(s: Sketch) -> Value:
    x = s.matrix()
    s.since(9)
    if s.opset >= 23 and s.chance(0.5):
        return s.op("RMSNormalization", [x, s.constant(s.rng.uniform(0.5, 2, x.shape[-1]))], x.shape, axis=-1)
    square = s.op("Mul", [x, x], x.shape, keep=False)
    mean = _mean(s, square)
    safe = s.op("Add", [mean, s.constant(np.float64(1e-5))], mean.shape, keep=False)
    root = s.op("Sqrt", [safe], mean.shape, keep=False)
    factor = s.op("Reciprocal", [root], mean.shape, keep=False)
    y = s.op("Mul", [x, factor], x.shape, keep=False)
    return s.op("Mul", [y, s.constant(s.rng.uniform(0.5, 2, x.shape[-1]))], x.shape)


def channels_last(s: Sketch) -> Value:
    """A convolution between two Transposes, as Keras exports it, and something beside."""
    from .convolution import _conv

    x = s.image()
    y = _conv(s, x)
    y = s.op("Transpose", [y], [y.shape[a] for a in (0, 2, 3, 1)], perm=[0, 2, 3, 1])
    y = s.op("Add", [y, s.constant(s.rng.standard_normal(y.shape[-1]))], y.shape)
    if s.chance(0.5):
        y = s.op("Relu", [y], y.shape)
    return s.op("Transpose", [y], [y.shape[a] for a in (0, 3, 1, 2)], perm=[0, 3, 1, 2])


def squeezed_product(s: Sketch) -> Value:
    x = s.matrix()
    if x.rank != 2:
        raise Unfit
    y = _axes(s, "Unsqueeze", x, [0], 3, (1, *x.shape))
    y = s.op("MatMul", [y, s.constant(s.grid(x.shape[-1], 16))], (1, x.shape[0], 16))
    return _axes(s, "Squeeze", y, [0], 3, (x.shape[0], 16))


EMITTERS = (
    layer_norm,
    layer_norm,
    gelu,
    hard_swish,
    hard_swish,
    silu,
    gated,
    attention,
    rms_norm,
    channels_last,
    squeezed_product,
)
