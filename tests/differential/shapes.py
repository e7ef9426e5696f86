"""Operators that move, cut and join numbers, many of them without effect."""

from __future__ import annotations

import numpy as np

from .sketch import Sketch, Unfit, Value


def reshape(s: Sketch) -> Value:
    """Chains of Reshape, with 0 and -1, allowzero, and Flatten."""
    x = s.any()
    for _ in range(s.between(1, 3)):
        if s.chance(0.2):
            axis = s.between(0, x.rank)
            shape = (int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:])))
            x = s.op("Flatten", [x], shape, axis=axis if axis != 1 or s.chance(0.5) else None)
            continue
        size = int(np.prod(x.shape))
        choices = [x.shape, (size,), (1, size), (*x.shape, 1), (x.shape[0], size // max(x.shape[0], 1))]
        for part in (2, 4, 8, 16):
            if size % part == 0:
                choices.append((size // part, part))
                choices.append((1, part, size // part))
        shape = tuple(s.one_of(*choices))
        if len(shape) > 4:
            continue
        written = list(shape)
        for axis in range(min(len(shape), x.rank)):
            if shape[axis] == x.shape[axis] and s.chance(0.3):
                written[axis] = 0
        if s.chance(0.4):
            written[s.between(0, len(written) - 1)] = -1
        allow = s.one_of(None, 0, 1) if s.opset >= 14 and 0 not in written else None
        target = s.ints(*written, other=np.array(shape) if s.chance(0.3) else None, fixed=s.chance(0.8))
        x = s.op("Reshape", [x, target], shape, allowzero=allow)
    return x


def squeeze(s: Sketch) -> Value:
    """Unsqueeze and Squeeze, one after the other."""
    x = s.any()
    for _ in range(s.between(1, 3)):
        ones = [axis for axis, size in enumerate(x.shape) if size == 1]
        if ones and s.chance(0.5):
            axes = sorted(s.rng.choice(ones, s.between(1, len(ones)), replace=False).tolist())
            if len(axes) == x.rank:
                axes = axes[1:]
            if not axes:
                continue
            shape = tuple(size for axis, size in enumerate(x.shape) if axis not in axes)
            x = _axes(s, "Squeeze", x, axes, x.rank, shape)
        elif x.rank < 4:
            rank = x.rank + s.between(1, 4 - x.rank)
            axes = sorted(s.rng.choice(rank, rank - x.rank, replace=False).tolist())
            rest = iter(x.shape)
            shape = tuple(1 if axis in axes else next(rest) for axis in range(rank))
            x = _axes(s, "Unsqueeze", x, axes, rank, shape)
    return x


def _axes(s: Sketch, kind: str, x: Value, axes: list[int], rank: int, shape) -> Value:
    negative = s.opset >= 11 and s.chance(0.3)
    written = [axis - rank for axis in axes] if negative else axes
    if s.chance(0.2):
        written = written[::-1]
    if s.opset < 13:
        return s.op(kind, [x], shape, axes=written)
    return s.op(kind, [x, s.ints(*written)], shape)


def transpose(s: Sketch) -> Value:
    x = s.any()
    for _ in range(s.between(1, 3)):
        perm = s.rng.permutation(x.rank).tolist()
        if s.chance(0.2):
            perm = list(range(x.rank))
        given = perm
        if s.chance(0.15):
            given, perm = None, list(range(x.rank))[::-1]
        x = s.op("Transpose", [x], [x.shape[axis] for axis in perm], perm=given)
    return x


def cut(s: Sketch) -> Value:
    """Chains of Slice, some of which take everything."""
    x = s.any()
    for _ in range(s.between(1, 2)):
        axes = sorted(s.rng.choice(x.rank, s.between(1, x.rank), replace=False).tolist())
        starts, ends, steps, shape = [], [], [], list(x.shape)
        for axis in axes:
            size = x.shape[axis]
            kind = s.one_of("all", "all", "part", "back")
            step = 1
            if kind == "all":
                start, end = 0, s.one_of(size, 2**31 - 1, 2**63 - 1 if s.opset >= 10 else 2**31 - 1)
            elif kind == "part":
                start, end = s.between(0, size - 1), size
                if s.chance(0.4):
                    start -= size
                step = s.one_of(1, 1, 2) if s.opset >= 10 else 1
            else:
                if s.opset < 10:
                    start, end = 0, size
                else:
                    start, end, step = size - 1, -size - 1, -1
            where = slice(start, None if end < -size else end, step)
            shape[axis] = len(range(size)[where])
            starts.append(start), ends.append(end), steps.append(step)
        if 0 in shape:
            raise Unfit
        if s.opset < 10:
            x = s.op("Slice", [x], shape, starts=starts, ends=ends, axes=axes)
        else:
            names = [s.ints(*each) for each in (starts, ends, axes)]
            if set(steps) != {1} or s.chance(0.5):
                names.append(s.ints(*steps))
            x = s.op("Slice", [x, *names], shape)
    return x


def expand(s: Sketch) -> Value:
    s.since(8)
    x = s.any()
    shape = [s.one_of(1, size) if s.chance(0.6) else (2 if size == 1 else size) for size in x.shape]
    if s.chance(0.2) and x.rank < 4:
        shape = [1, *shape]
    result = np.broadcast_shapes(x.shape, tuple(shape))
    return s.op("Expand", [x, s.ints(*shape)], result)


def scatter(s: Sketch) -> Value:
    """ScatterND and ScatterElements, over everything or part, with reductions."""
    s.since(11)
    x = s.any()
    rows = x.shape[0]
    order = np.arange(rows) if s.chance(0.6) else s.rng.permutation(rows)
    reduction = None
    if s.opset >= 16:
        reduction = s.one_of(None, None, "none", "add", "mul", *(["min", "max"] if s.opset >= 18 else []))
    y = s.pick(where=lambda v: v.shape == x.shape) or x
    if s.chance(0.5):
        y = s.op("Neg", [x], x.shape)
    if s.chance(0.7):
        indices = order.reshape(-1, 1)
        other = s.rng.permutation(rows).reshape(-1, 1)
        return s.op("ScatterND", [x, s.constant(indices, other, fixed=s.chance(0.7)), y], x.shape, reduction=reduction)
    indices = np.broadcast_to(order.reshape(-1, *([1] * (x.rank - 1))), x.shape)
    return s.op(
        "ScatterElements", [x, s.constant(indices.copy()), y], x.shape, axis=s.one_of(None, 0), reduction=reduction
    )


def gather(s: Sketch) -> Value:
    x = s.any()
    axis = s.between(0, x.rank - 1)
    size = x.shape[axis]
    if s.chance(0.15) and x.rank > 1:
        low = -size if s.opset >= 11 else 0
        index = s.constant(np.array(s.between(low, size - 1)))
        return s.op("Gather", [x, index], [*x.shape[:axis], *x.shape[axis + 1 :]], axis=axis)
    index = np.arange(size) if s.chance(0.4) else s.rng.integers(0, size, s.between(1, size))
    return s.op("Gather", [x, s.constant(index, fixed=True)], [*x.shape[:axis], len(index), *x.shape[axis + 1 :]],
                axis=axis if axis or s.chance(0.5) else None)  # fmt: skip


def join(s: Sketch) -> Value:
    """Concat of one or more, and a Split behind it or before."""
    x = s.any()
    axis = s.between(0, x.rank - 1)
    if s.chance(0.5):
        y = s.pick(where=lambda v: v.shape == x.shape) or x
        parts = [x] if s.chance(0.2) else [x, y]
        if s.chance(0.2):
            parts.append(s.constant(s.rng.standard_normal(x.shape)))
        shape = list(x.shape)
        shape[axis] *= len(parts)
        written = axis - x.rank if s.opset >= 11 and s.chance(0.3) else axis
        return s.op("Concat", parts, shape, axis=written)
    size = x.shape[axis]
    first = s.between(1, size - 1) if size > 1 else 1
    sizes = [size] if size == 1 or s.chance(0.1) else [first, size - first]
    shape = [*x.shape[:axis], sizes[0], *x.shape[axis + 1 :]]
    more = len(sizes) - 1
    if s.opset < 13:
        return s.op("Split", [x], shape, axis=axis, split=sizes, more=more)
    return s.op("Split", [x, s.ints(*sizes)], shape, axis=axis, more=more)


def pad(s: Sketch) -> Value:
    x = s.any()
    pads = s.rng.integers(0, 3, 2 * x.rank) * (s.rng.random(2 * x.rank) < 0.5)
    mode = s.one_of(None, "constant", "edge", "reflect")
    if mode == "reflect":
        pads = np.minimum(pads, np.tile(np.array(x.shape) - 1, 2))
    shape = [size + int(a + b) for size, a, b in zip(x.shape, pads[: x.rank], pads[x.rank :], strict=True)]
    if s.opset < 11:
        return s.op("Pad", [x], shape, pads=pads.tolist(), mode=mode, value=s.one_of(None, 0.0, 1.5))
    inputs: list = [x, s.ints(*pads.tolist())]
    if mode in (None, "constant") and s.chance(0.5):
        inputs.append(s.constant(np.float64(s.one_of(0.0, 1.5))))
    return s.op("Pad", inputs, shape, mode=mode)


def reduce(s: Sketch) -> Value:
    x = s.any()
    kind = s.one_of(
        "ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "ReduceMin", "ReduceSumSquare", "ReduceLogSumExp"
    )
    axis = s.between(0, x.rank - 1)
    keep = s.one_of(None, 0, 1)
    if x.rank == 1:
        keep = 1
    shape = list(x.shape)
    shape[axis] = 1
    if keep == 0:
        del shape[axis]
    if s.opset >= 18 or (kind == "ReduceSum" and s.opset >= 13):
        return s.op(kind, [x, s.ints(axis)], shape, keepdims=keep)
    return s.op(kind, [x], shape, axes=[axis], keepdims=keep)


def resize(s: Sketch) -> Value:
    """Resize of all opsets, and Upsample."""
    x = s.image()
    factors = [1.0, 1.0, s.one_of(1.0, 2.0, 0.5, 1.5), s.one_of(1.0, 2.0, 3.0)]
    shape = [int(np.floor(size * factor)) for size, factor in zip(x.shape, factors, strict=True)]
    if s.dtype != np.float32:
        raise Unfit
    mode = s.one_of("nearest", "linear")
    if s.opset < 9:
        if min(factors) < 1:
            raise Unfit
        return s.op("Upsample", [x], shape, mode=mode, scales=factors)
    scales = s.constant(np.array(factors), fixed=True, dtype=np.float32)
    if s.opset < 10:
        if min(factors) < 1:
            raise Unfit
        return s.op("Upsample", [x, scales], shape, mode=mode)
    if s.opset < 11:
        return s.op("Resize", [x, scales], shape, mode=mode)
    way = s.one_of(None, "asymmetric", "align_corners", "half_pixel", "pytorch_half_pixel")
    rounding = s.one_of(None, "floor", "ceil", "round_prefer_ceil") if mode == "nearest" else None
    roi = "" if s.opset >= 13 else s.constant(np.zeros(0), fixed=True, dtype=np.float32)
    more = {"coordinate_transformation_mode": way, "nearest_mode": rounding}
    if s.chance(0.5):
        return s.op("Resize", [x, roi, scales], shape, mode=mode, **more)
    none = "" if s.opset >= 13 else s.constant(np.zeros(0), fixed=True, dtype=np.float32)
    return s.op("Resize", [x, roi, none, s.ints(*shape)], shape, mode=mode, **more)


def shaped_by_another(s: Sketch) -> Value:
    """Shape, and a Reshape or Expand of ones by it."""
    x = s.any()
    shape = s.op("Shape", [x], (x.rank,), np.int64)
    if s.chance(0.5):
        y = s.op("Reshape", [x, s.ints(-1)], (int(np.prod(x.shape)),), keep=False)
        return s.op("Reshape", [y, shape], x.shape)
    s.since(9)
    from onnx import numpy_helper

    fill = numpy_helper.from_array(np.array([s.one_of(0, 1, 2.5)], s.dtype))
    y = s.op("ConstantOfShape", [shape], x.shape, value=fill, keep=False)
    return s.op(s.one_of("Add", "Mul"), [x, y], x.shape)


def tile(s: Sketch) -> Value:
    x = s.any()
    times = [s.one_of(1, 1, 2) for _ in x.shape]
    return s.op("Tile", [x, s.ints(*times)], [size * n for size, n in zip(x.shape, times, strict=True)])


def depth(s: Sketch) -> Value:
    x = s.image()
    n, c, h, w = x.shape
    if h % 2 == 0 and w % 2 == 0 and s.chance(0.5):
        return s.op("SpaceToDepth", [x], (n, c * 4, h // 2, w // 2), blocksize=2)
    if c % 4:
        raise Unfit
    mode = s.one_of(None, "CRD", "DCR") if s.opset >= 11 else None
    return s.op("DepthToSpace", [x], (n, c // 4, h * 2, w * 2), blocksize=2, mode=mode)


EMITTERS = (
    reshape, reshape, squeeze, transpose, transpose, cut, cut, expand, scatter, gather, join, join, pad, reduce, resize,
    shaped_by_another, tile, depth,
)  # fmt: skip
