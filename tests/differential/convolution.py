"""Convolutions and pooling, and what stands before and behind them."""

from __future__ import annotations

import numpy as np

from .sketch import Sketch, Unfit, Value


def conv(s: Sketch) -> Value:
    x = s.image()
    if s.chance(0.25):
        x = _padded(s, x)
    y = _conv(s, x)
    return _behind(s, y) if s.chance(0.6) else y


def _padded(s: Sketch, x: Value) -> Value:
    pads = np.zeros((2, 4), int)
    pads[:, 2:] = s.rng.integers(0, 3, (2, 2))
    if s.chance(0.15):
        pads[0, 1] = 1
    value = s.one_of(None, 0.0, 0.0, 1.0)
    mode = s.one_of(None, "constant", "constant", "edge", "reflect")
    shape = [size + int(a + b) for size, a, b in zip(x.shape, *pads, strict=True)]
    if s.opset < 11:
        return s.op("Pad", [x], shape, pads=pads.ravel().tolist(), mode=mode, value=value)
    inputs: list = [x, s.ints(*pads.ravel().tolist())]
    if value is not None and mode in (None, "constant"):
        inputs.append(s.constant(np.float64(value)))
    return s.op("Pad", inputs, shape, mode=mode)


def _window(s: Sketch, x: Value, kernel, *, dilate: bool = True):
    """Attributes of a window over the last two axes, and the size it leaves."""
    strides = [s.one_of(1, 1, 2) for _ in kernel]
    dilations = [s.one_of(1, 1, 2) if dilate else 1 for _ in kernel]
    auto = s.one_of(None, None, "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
    if auto in ("SAME_UPPER", "SAME_LOWER") and s.chance(0.95):  # ONNX Runtime refuses both of most operators
        dilations = [1] * len(kernel)
    pads = s.rng.integers(0, 3, 4) * (s.rng.random(4) < 0.5)
    pads = np.minimum(pads, np.tile(np.array(kernel) - 1, 2))
    given = {
        "strides": strides if set(strides) != {1} or s.chance(0.5) else None,
        "dilations": dilations if set(dilations) != {1} or (dilate and s.chance(0.5)) else None,
        "auto_pad": auto,
    }
    if auto in (None, "NOTSET"):
        given["pads"] = pads.tolist() if pads.any() or s.chance(0.5) else None
    sizes = []
    for axis in range(2):
        size, k = x.shape[2 + axis], dilations[axis] * (kernel[axis] - 1) + 1
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            sizes.append(-(-size // strides[axis]))
            continue
        padding = int(pads[axis] + pads[axis + 2]) if auto in (None, "NOTSET") else 0
        sizes.append((size + padding - k) // strides[axis] + 1)
    if min(sizes) < 1:
        raise Unfit
    return given, sizes


def _conv(s: Sketch, x: Value) -> Value:
    inputs = x.shape[1]
    group = s.one_of(1, 1, inputs, *([2] if inputs % 2 == 0 else []))
    outputs = group * s.one_of(1, 2, 4)
    kernel = [s.one_of(1, 3, 3, 2), s.one_of(1, 3, 3, 2)]
    given, sizes = _window(s, x, kernel)
    weight = s.grid(outputs, inputs // group * kernel[0] * kernel[1], rows=1).reshape(outputs, inputs // group, *kernel)
    names: list = [x, s.constant(weight)]
    if s.chance(0.5):
        names.append(s.constant(np.zeros(outputs) if s.chance(0.3) else s.rng.standard_normal(outputs)))
    return s.op("Conv", names, (x.shape[0], outputs, *sizes), group=group if group > 1 or s.chance(0.3) else None,
                kernel_shape=kernel if s.chance(0.6) else None, **given)  # fmt: skip


def _behind(s: Sketch, y: Value) -> Value:
    kind = s.one_of("norm", "affine", "affine", "Relu", "Clip")
    if kind == "norm":
        return _batch_norm(s, y)
    if kind == "affine":
        for op_type in s.one_of(("Mul", "Add"), ("Mul",), ("Add",), ("Add", "Mul"), ("Sub",), ("Div",)):
            shape = s.one_of((), (1,), (y.shape[1], 1, 1), (1, y.shape[1], 1, 1), (1, 1, 1, 1), (1, 1, 1, y.shape[3]))
            name = s.constant(s.rng.uniform(0.5, 2, shape))
            y = s.op(op_type, [y, name] if op_type in ("Div", "Sub") or s.chance(0.7) else [name, y], y.shape)
        return y
    if kind == "Clip" and s.opset < 11:
        return s.op("Clip", [y], y.shape, min=0.0, max=6.0)
    if kind == "Clip":
        return s.op("Clip", [y, s.constant(np.float64(0)), s.constant(np.float64(6))], y.shape)
    return s.op("Relu", [y], y.shape)


def _batch_norm(s: Sketch, y: Value) -> Value:
    c = y.shape[1]
    scale, bias, mean = s.rng.uniform(0.5, 2, c), s.rng.standard_normal(c), s.rng.standard_normal(c)
    variance, other = s.rng.uniform(0.3, 2, (2, c))
    names = [*map(s.constant, (scale, bias, mean)), s.constant(variance, other)]
    given = {"epsilon": s.one_of(None, 1e-3, 1e-5)}
    if s.opset >= 14 and s.chance(0.2):
        return s.op("BatchNormalization", [y, *names], y.shape, training_mode=1, more=2, **given)
    return s.op("BatchNormalization", [y, *names], y.shape, **given)


def batch_norm(s: Sketch) -> Value:
    return _batch_norm(s, s.image())


def conv_transpose(s: Sketch) -> Value:
    x = s.image()
    inputs = x.shape[1]
    group = s.one_of(1, 1, inputs)
    each = s.one_of(1, 2, 3)
    kernel = [s.one_of(1, 2, 3), s.one_of(2, 3)]
    strides = [s.one_of(1, 2), s.one_of(1, 2)]
    dilations = [s.one_of(1, 1, 2), 1]
    pads = [s.one_of(0, 0, 1) if kernel[axis % 2] > 1 else 0 for axis in range(4)]
    extra = [s.one_of(0, stride - 1) for stride in strides]
    sizes = [
        strides[a] * (x.shape[2 + a] - 1) + extra[a] + dilations[a] * (kernel[a] - 1) + 1 - pads[a] - pads[a + 2]
        for a in range(2)
    ]
    weight = s.grid(inputs, each * kernel[0] * kernel[1]).reshape(inputs, each, *kernel)
    names: list = [x, s.constant(weight)]
    if s.chance(0.5):
        names.append(s.constant(s.rng.standard_normal(each * group)))
    given = {"output_padding": extra if any(extra) else None, "group": group if group > 1 else None}
    if min(sizes) < 1:
        raise Unfit
    y = s.op("ConvTranspose", names, (x.shape[0], each * group, *sizes), strides=strides, dilations=dilations,
             pads=pads, kernel_shape=kernel if s.chance(0.6) else None, **given)  # fmt: skip
    return _behind(s, y) if s.chance(0.6) else y


def pool(s: Sketch) -> Value:
    x = s.image()
    kind = s.one_of("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool")
    if kind.startswith("Global"):
        return s.op(kind, [x], (*x.shape[:2], 1, 1))
    kernel = [s.one_of(2, 3), s.one_of(2, 3)]
    dilated = (kind == "MaxPool" and s.opset >= 10) or (kind == "AveragePool" and s.opset >= 19)
    given, sizes = _window(s, x, kernel, dilate=dilated)
    if kind == "AveragePool" and s.chance(0.5):
        given["count_include_pad"] = s.one_of(0, 1)
    if kind == "LpPool":
        given["p"] = s.one_of(None, 1, 2)
        given["auto_pad"] = None if given["auto_pad"] == "NOTSET" else given["auto_pad"]
    if s.opset >= 10 and kind != "LpPool" and s.chance(0.2):  # a mean of it, whose size nobody need know
        y = s.op(kind, [x], (*x.shape[:2], *sizes), kernel_shape=kernel, keep=False, ceil_mode=1, **given)
        return s.op("GlobalAveragePool", [y], (*x.shape[:2], 1, 1))
    return s.op(kind, [x], (*x.shape[:2], *sizes), kernel_shape=kernel, **given)


def lrn(s: Sketch) -> Value:
    x = s.image()
    return s.op("LRN", [x], x.shape, size=s.one_of(1, 3, 5), alpha=s.one_of(None, 0.01), bias=s.one_of(None, 2.0))


def instance_norm(s: Sketch) -> Value:
    x = s.image()
    names = [s.constant(s.rng.uniform(0.5, 2, x.shape[1])), s.constant(s.rng.standard_normal(x.shape[1]))]
    return s.op("InstanceNormalization", [x, *names], x.shape, epsilon=s.one_of(None, 1e-3))


EMITTERS = (conv, conv, conv, conv, batch_norm, conv_transpose, pool, pool, lrn, instance_norm)
