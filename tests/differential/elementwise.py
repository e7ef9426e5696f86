"""Operators that work number by number, and chains of them that rules put together."""

from __future__ import annotations

import numpy as np

from .sketch import Sketch, Unfit, Value

_UNARY = {
    "Relu": 7, "Sigmoid": 7, "Tanh": 7, "Neg": 7, "Abs": 7, "Identity": 7, "Softplus": 7, "Softsign": 7, "Erf": 9,
    "Sin": 7, "Mish": 18, "HardSwish": 14,
}  # fmt: skip
_PARAMETRIC = {
    "LeakyRelu": ("alpha",), "Elu": ("alpha",), "ThresholdedRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"),
    "Selu": ("alpha", "gamma"), "Celu": ("alpha",),
}  # fmt: skip
_SPECIAL = (0.0, 1.0, -1.0, 1e-12, 1e-9, 1e-7, 1e-5, 0.5, 2.0, 3.0, 6.0, 1.0 + 1e-6)


def unary(s: Sketch) -> Value:
    x = s.any()
    kind = s.one_of(*_UNARY)
    s.since(_UNARY[kind])
    return s.op(kind, [x], x.shape)


def parametric(s: Sketch) -> Value:
    x = s.any()
    kind = s.one_of(*_PARAMETRIC)
    s.since(12 if kind == "Celu" else 10 if kind == "ThresholdedRelu" else 7)
    given = {name: float(s.rng.uniform(0.1, 1.5)) if s.chance(0.6) else None for name in _PARAMETRIC[kind]}
    return s.op(kind, [x], x.shape, **given)


def operand(s: Sketch, x: Value) -> str:
    """A constant that broadcasts to `x`, or is larger in rank or along an axis of one."""
    number = s.one_of(*_SPECIAL) if s.chance(0.6) else float(s.rng.standard_normal())
    shape = s.one_of((), (1,), (1,) * x.rank, x.shape[-1:], x.shape, (1, *x.shape))
    if x.rank == 4 and s.chance(0.5):
        shape = (x.shape[1], 1, 1) if s.chance(0.5) else (1, x.shape[1], 1, 1)
    if 1 in x.shape and s.chance(0.15):  # an axis that grows
        axes = [axis for axis, size in enumerate(x.shape) if size == 1]
        wide = s.one_of(*axes)
        shape = tuple(s.one_of(3, 16) if axis == wide else 1 for axis in range(x.rank))
    array = np.full(shape, number)
    return s.constant(s.rng.standard_normal(shape) if s.chance(0.3) else array)


def with_constant(s: Sketch) -> Value:
    x = s.any()
    kind = s.one_of("Add", "Sub", "Mul", "Div")
    name = operand(s, x)
    shape = np.broadcast_shapes(x.shape, _shape(s, name))
    if len(shape) > 4:
        raise Unfit
    return s.op(
        kind, [x, name] if (s.chance(0.8) and kind != "Div") or (kind == "Div" and s.chance(0.9)) else [name, x], shape
    )


def _shape(s: Sketch, name: str) -> tuple[int, ...]:
    owner: Sketch | None = s
    while owner is not None:
        for tensor in owner.initializers:
            if tensor.name == name:
                return tuple(tensor.dims)
        for node in owner.nodes:
            if name in node.output:
                if node.op_type == "Identity":
                    return _shape(s, node.input[0])
                return tuple(node.attribute[0].t.dims)
        owner = owner.outer
    raise Unfit


def of_two(s: Sketch) -> Value:
    x = s.any()
    y = s.pick(where=lambda v: v.shape == x.shape)
    kinds = ["Add", "Sub", "Mul", *(["Min", "Max", "Sum", "Mean"] if s.opset >= 8 else [])]
    return s.op(s.one_of(*kinds), [x, y or x], x.shape)


def power(s: Sketch) -> Value:
    x = s.any()
    if s.chance(0.3):
        x = s.op("Abs", [x], x.shape)
    return s.op("Pow", [x, s.constant(np.float64(s.one_of(1, 2, 3, 0)))], x.shape)


def guarded(s: Sketch) -> Value:
    """A logarithm or division that a small constant keeps finite."""
    x = s.any()
    small = s.constant(np.full(s.one_of((), (1,)), s.one_of(1e-12, 1e-9, 1e-7, 1e-5)), fixed=True)
    if s.dtype == np.float16:
        raise Unfit
    h = s.op("Add", [s.op("Abs", [x], x.shape, keep=False), small], x.shape, keep=False)
    if s.chance(0.5):
        return s.op("Log", [h], x.shape)
    return s.op("Div", [x, h], x.shape)


def clip(s: Sketch) -> Value:
    """Chains of Clip, Relu, Min and Max, with bounds absent, crossed, or defaults that a caller overrides."""
    x = s.any()
    for _ in range(s.between(1, 3)):
        kind = s.one_of("Clip", "Clip", "Relu", "Min", "Max")
        if kind == "Relu":
            x = s.op(kind, [x], x.shape)
        elif kind == "Clip":
            low, high = sorted(s.rng.choice([-1.0, -0.5, 0.0, 0.5, 1.0, 6.0], 2))
            low, high = (low if s.chance(0.7) else None), (high if s.chance(0.7) else None)
            if s.opset < 11:
                x = s.op(kind, [x], x.shape, min=low, max=high)
            else:
                bounds = ["" if b is None else s.constant(np.float64(b), np.float64(b + s.one_of(-0.25, 0.25)))
                          for b in (low, high)]  # fmt: skip
                x = s.op(kind, [x, *bounds], x.shape)
        else:
            s.since(8)
            shape = s.one_of((), (1,), x.shape[-1:])
            more = [s.constant(np.round(s.rng.standard_normal(shape), 1)) for _ in range(s.between(1, 2))]
            x = s.op(kind, [x, *more] if s.chance(0.8) else [more[0], x], x.shape)
    return x


def cast(s: Sketch) -> Value:
    """There and back through other types."""
    from onnx import helper

    x = s.any()
    s.since(9)
    for _ in range(s.between(1, 3)):
        dtype = s.one_of(np.float32, np.float16, np.float64, np.int32, np.int64, s.dtype)
        x = s.op("Cast", [x], x.shape, dtype, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), keep=False)
    if x.dtype == s.dtype:
        s.values.append(x)
        return x
    return s.op("Cast", [x], x.shape, to=helper.np_dtype_to_tensor_dtype(s.dtype))


def dropout(s: Sketch) -> Value:
    x = s.any()
    more = 1 if s.chance(0.2) else 0
    if s.opset < 12:
        return s.op("Dropout", [x], x.shape, ratio=s.one_of(0.0, 0.5, None), more=more)
    ratio = s.constant(np.float64(s.one_of(0.0, 0.5)), np.float64(0.25), dtype=np.float32)
    inputs: list = [x, ratio] if s.chance(0.7) else [x]
    if s.chance(0.3):  # training, where nothing is dropped only at ratio 0
        zero = s.constant(np.float32(0), fixed=True, dtype=np.float32)
        inputs = [x, zero, s.constant(np.array(s.one_of(True, False)), fixed=True)]
    return s.op("Dropout", inputs, x.shape, more=more)


def where(s: Sketch) -> Value:
    s.since(9)
    x = s.any()
    y = s.pick(where=lambda v: v.shape == x.shape) or x
    mask = s.constant(s.rng.random(s.one_of(x.shape, x.shape[-1:], ())) < 0.5)
    return s.op("Where", [mask, x, s.constant(np.float64(s.one_of(0, -1e4))) if s.chance(0.4) else y], x.shape)


def softmax(s: Sketch) -> Value:
    x = s.any()
    kind = s.one_of("Softmax", "LogSoftmax", "Hardmax")
    axis = s.one_of(None, -1, x.rank - 1, 1 if x.rank > 1 else 0, 0)
    if s.opset < 11 and axis is not None and axis < 0:
        axis = None
    if s.opset < 13 and axis is None and x.rank < 2:
        axis = 0
    return s.op(kind, [x], x.shape, axis=axis)


def prelu(s: Sketch) -> Value:
    x = s.any()
    shape = s.one_of((1,), x.shape[-1:], (x.shape[1], *([1] * (x.rank - 2))) if x.rank > 2 else (1,))
    return s.op("PRelu", [x, s.constant(s.rng.uniform(0, 0.5, shape))], x.shape)


EMITTERS = (
    unary, unary, parametric, with_constant, with_constant, with_constant, of_two, of_two, power, guarded, clip, clip,
    cast, dropout, where, softmax, prelu,
)  # fmt: skip
