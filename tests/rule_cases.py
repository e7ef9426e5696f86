"""Graphs on which each rewrite rule of clean-up applies, and graphs on which its guard says no."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

RNG = np.random.default_rng(5)
FLOAT, HALF, DOUBLE, INT64 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT64
LAST = 2**63 - 1


def array(*shape, dtype=np.float32):
    return RNG.normal(size=shape).astype(dtype)


def number(b, value, shape=(), dtype=np.float32):
    return b.constant(f"c{len(b.graph.initializers)}", np.full(shape, value, dtype))


def ints(b, *values):
    return b.constant(f"i{len(b.graph.initializers)}", np.array(values, np.int64))


def clip(b, x, low, high, dtype=np.float32):
    """With bounds as inputs, or as attributes in old opsets."""
    if b.graph.opset_imports[""] < 11:
        return b.op("Clip", x, min=float(low), max=float(high))
    return b.op("Clip", x, number(b, low, dtype=dtype), number(b, high, dtype=dtype))


def norm(b, x, channels=4, outputs=1, dtype=np.float32, **attributes):
    parts = [
        b.constant(f"{name}{len(b.graph)}", np.abs(array(channels, dtype=dtype)) + dtype(0.5))
        for name in ("scale", "shift", "mean", "variance")
    ]
    result = b.op("BatchNormalization", x, *parts, outputs=outputs, **attributes)
    return result if outputs == 1 else result[0]


def conv(b, x, channels=2, outputs=4, **attributes):
    weight = b.constant(f"W{len(b.graph)}", array(outputs, channels, 3, 3))
    return b.op("Conv", x, weight, b.constant(f"b{len(b.graph)}", array(outputs)), **attributes)


def pool(b, x, group=1):
    """A ConvTranspose."""
    return b.op("ConvTranspose", x, b.constant("W", array(2, 4 // group, 2, 2)), group=group)


def gemm(b, x, bias=None, **attributes):
    more = [] if bias is None else [b.constant("bias", bias)]
    return b.op("Gemm", x, b.constant("W", array(6, 4)), *more, **attributes)


def affine(b, x, shape=(), factor=2.5):
    return b.op("Add", b.op("Mul", x, number(b, factor, shape)), number(b, 0.5, shape))


def reshapes(b, x, rows, matrix, wanted, weight=(6, 5), reshaped=False):
    w = b.constant("W", array(*weight))
    w = b.op("Reshape", b.input("w", list(weight)), ints(b, *matrix)) if reshaped else w
    return b.op("Reshape", b.op("MatMul", b.op("Reshape", x, ints(b, *rows)), w), ints(b, *wanted))


def scatter(b, x, rows, **attributes):
    indices = b.constant("rows", np.array(rows, np.int64).reshape(-1, 1))
    return b.op("ScatterND", x, indices, b.op("Neg", x), **attributes)


def scatter_dynamic(b, x, reduction="none"):
    size = b.op("Gather", b.op("Shape", x, start=0), b.constant("axis", np.array(0, np.int64)), axis=0)
    zero, one = (b.constant(f"n{value}", np.array(value, np.int64)) for value in (0, 1))
    rows = b.op("Unsqueeze", b.op("Range", zero, size, one), ints(b, -1))
    return b.op("ScatterND", x, rows, b.op("Neg", x), reduction=reduction)


def sliced(b, x, starts, ends, axes, steps):
    return b.op("Slice", x, ints(b, *starts), ints(b, *ends), ints(b, *axes), ints(b, *steps))


def filled(b, x, value, to):
    shape = b.op("Concat", b.op("Shape", b.op("Reshape", x, ints(b, -1))), ints(b, 1), axis=0)
    attributes = {} if value is None else {"value": ir.tensor(np.array([value]))}
    return b.op("Cast", b.op("ConstantOfShape", shape, **attributes), to=to)


def pad(b, x, mode="constant", attribute=False, value=None, pads=(0, 0, 1, 1, 0, 0, 0, 1)):
    if attribute:
        return b.op("Pad", x, pads=list(pads), mode=mode)
    return b.op("Pad", x, ints(b, *pads), *([] if value is None else [number(b, value)]), mode=mode)


ROW, IMAGE = [4, 6], [2, 2, 5, 6]
# Opset, shape and type of x, and what is made of it.
APPLIES = {
    "add_0_rule": (17, ROW, FLOAT, lambda b, x: b.op("Add", x, number(b, 0))),
    "sub_0_rule": (17, ROW, DOUBLE, lambda b, x: b.op("Sub", x, number(b, 0, dtype=np.float64))),
    "mul_by_1_rule": (17, ROW, HALF, lambda b, x: b.op("Mul", x, number(b, 1, dtype=np.float16))),
    "div_by_1_rule": (7, ROW, FLOAT, lambda b, x: b.op("Div", x, number(b, 1))),
    "affine_conv_fusion_rule": (17, IMAGE, FLOAT, lambda b, x: conv(b, affine(b, x, (1, 1)), pads=[0] * 4)),
    "conv_affine_fusion_rule": (17, IMAGE, FLOAT, lambda b, x: affine(b, conv(b, x, pads=[1] * 4), (1,))),
    "cast_cast_rule": (17, ROW, HALF, lambda b, x: b.op("Cast", b.op("Cast", x, to=FLOAT), to=ir.DataType.BFLOAT16)),
    "cast_constant_of_shape_rule": (17, ["N", 6], FLOAT, lambda b, x: filled(b, x, np.float32(2), INT64)),
    "cast_constant_of_shape_without_value_rule": (17, ["N", 6], FLOAT, lambda b, x: filled(b, x, None, INT64)),
    "collapse_slice_rule": (17, ["N", 6], FLOAT, lambda b, x: sliced(b, x, [0], [LAST], [0], [1])),
    "collapse_slice2_rule": (17, ROW, FLOAT, lambda b, x: sliced(b, x, [0, 0], [9, 6], [0, 1], [1, 1])),
    "flatten_to_reshape_rule": (17, ["N", 2, 3], FLOAT, lambda b, x: b.op("Flatten", x)),
    "fuse_batchnorm_into_conv_rule": (9, IMAGE, FLOAT, lambda b, x: norm(b, conv(b, x))),
    "fuse_batchnorm_into_conv_transpose_rule": (15, IMAGE, FLOAT, lambda b, x: norm(b, pool(b, x, 2))),
    "fuse_batchnorm_into_gemm_rule": (15, ROW, FLOAT, lambda b, x: norm(b, gemm(b, x, array(4), alpha=2.0))),
    "fuse_pad_into_conv_rule": (11, IMAGE, FLOAT, lambda b, x: conv(b, pad(b, x))),
    "max_max_rule": (17, ROW, FLOAT, lambda b, x: b.op("Max", b.op("Max", x, number(b, -1)), number(b, 0.5))),
    "min_min_rule": (8, ROW, FLOAT, lambda b, x: b.op("Min", b.op("Min", x, number(b, 1)), number(b, 0.5))),
    "max_min_rule": (17, ROW, FLOAT, lambda b, x: b.op("Min", b.op("Max", x, number(b, -1)), number(b, 0.5))),
    "min_max_rule": (17, ROW, FLOAT, lambda b, x: b.op("Max", b.op("Min", x, number(b, 1)), number(b, -0.5, (1, 1)))),
    "no_op_cast_rule": (17, ROW, FLOAT, lambda b, x: b.op("Cast", x, to=FLOAT)),
    "no_op_dynamic_scatter_nd_rule": (18, ["N", 6], FLOAT, scatter_dynamic),
    "no_op_expand_rule": (17, ROW, FLOAT, lambda b, x: b.op("Expand", x, ints(b, 4, 6))),
    "no_op_static_scatter_nd_rule": (18, [4, "N"], FLOAT, lambda b, x: scatter(b, x, range(4))),
    "no_op_transpose_rule": (17, ROW, FLOAT, lambda b, x: b.op("Transpose", x, perm=[0, 1])),
    "normalize_pad_format_conv_rule": (17, IMAGE, FLOAT, lambda b, x: conv(b, x, auto_pad="SAME_LOWER")),
    "one_reshape_matmul_reshape_rule": (17, [2, 3, 6], FLOAT, lambda b, x: reshapes(b, x, [6, 6], None, [2, 3, 5])),
    "two_reshapes_matmul_reshape_rule": (
        17, [1, 3, 6], FLOAT, lambda b, x: reshapes(b, x, [3, 6], [6, 5], [1, 3, 5], (1, 6, 5), reshaped=True),
    ),
    "remove_optional_bias_from_conv_rule": (
        17, IMAGE, FLOAT,
        lambda b, x: b.op("Conv", x, b.constant("W", array(4, 2, 1, 1)), b.constant("bias", np.zeros(4, np.float32))),
    ),
    "remove_optional_bias_from_conv_transpose_rule": (
        17, IMAGE, FLOAT,
        lambda b, x: b.op(
            "ConvTranspose", x, b.constant("W", array(2, 4, 1, 1)), b.constant("bias", np.zeros(4, np.float32))
        ),
    ),
    "remove_optional_bias_from_gemm_rule": (11, ROW, FLOAT, lambda b, x: gemm(b, x, np.zeros(4, np.float32))),
    "reshape_reshape_rule": (
        17, ["N", 6], FLOAT, lambda b, x: b.op("Reshape", b.op("Reshape", x, ints(b, -1, 2)), ints(b, 3, 8)),
    ),
    "squeeze_reshape_1d_rule": (17, [1], FLOAT, lambda b, x: b.op("Reshape", b.op("Squeeze", x), ints(b, -1))),
    "successive_clip_relu_rule": (11, ROW, FLOAT, lambda b, x: clip(b, b.op("Relu", x), -1, 0.5)),
    "successive_clip_rule": (17, ROW, HALF, lambda b, x: clip(b, clip(b, x, -1, 1, np.float16), 0, 2, np.float16)),
    "successive_relu_clip_rule": (17, ROW, FLOAT, lambda b, x: b.op("Relu", clip(b, x, -1, 0.5))),
    "successive_relu_rule": (7, ROW, FLOAT, lambda b, x: b.op("Relu", b.op("Relu", x))),
    "transpose_transpose_rule": (
        17, [2, 3, 4], FLOAT,
        lambda b, x: b.op("Transpose", b.op("Transpose", x, perm=[1, 2, 0]), perm=[1, 2, 0]),
    ),
    "unsqueeze_unsqueeze_rule": (
        17, ROW, FLOAT, lambda b, x: b.op("Unsqueeze", b.op("Unsqueeze", x, ints(b, 1)), ints(b, 0)),
    ),
}  # fmt: skip
LEFT = {
    "an epsilon added": (
        "add_0_rule",
        17,
        ROW,
        FLOAT,
        lambda b, x: b.op("Log", b.op("Add", b.op("Sub", x, x), number(b, 1e-12))),
    ),
    "an epsilon taken away": (
        "sub_0_rule",
        17,
        ROW,
        FLOAT,
        lambda b, x: b.op("Log", b.op("Sub", b.op("Sub", x, x), number(b, -1e-9))),
    ),
    "nearly 1, often": (
        "mul_by_1_rule",
        17,
        ROW,
        DOUBLE,
        lambda b, x: b.op("Mul", x, number(b, 1 + 1e-6, dtype=np.float64)),
    ),
    "through nearly 1": (
        "div_by_1_rule",
        17,
        ROW,
        DOUBLE,
        lambda b, x: b.op("Div", x, number(b, 1 - 1e-6, dtype=np.float64)),
    ),
    "auto_pad beside pads": (
        "affine_conv_fusion_rule",
        17,
        IMAGE,
        FLOAT,
        lambda b, x: conv(b, affine(b, x), pads=[0] * 4, auto_pad="SAME_UPPER"),
    ),
    "numbers that raise the rank": (
        "affine_conv_fusion_rule",
        17,
        [2, 5, 6],
        FLOAT,
        lambda b, x: conv(b, affine(b, x, (1, 1, 1, 1)), pads=[0] * 4),
    ),
    "numbers with four axes": (
        "conv_affine_fusion_rule",
        17,
        IMAGE,
        FLOAT,
        lambda b, x: affine(b, conv(b, x), (1, 1, 1, 1)),
    ),
    "a factor that overflows": (
        "conv_affine_fusion_rule",
        17,
        IMAGE,
        FLOAT,
        lambda b, x: b.op(
            "Mul", affine(b, conv(b, b.op("Mul", x, number(b, 1e-30, (1, 1)))), factor=3e38), number(b, 1e-8, (1, 1))
        ),
    ),
    "a cast that rounds": (
        "cast_cast_rule",
        17,
        ROW,
        DOUBLE,
        lambda b, x: b.op("Cast", b.op("Cast", x, to=FLOAT), to=HALF),
    ),
    "a fraction to integers": (
        "cast_constant_of_shape_rule",
        17,
        ["N", 6],
        FLOAT,
        lambda b, x: filled(b, x, np.float32(1.5), INT64),
    ),
    "a negative number to bytes": (
        "cast_constant_of_shape_rule",
        17,
        ["N", 6],
        FLOAT,
        lambda b, x: filled(b, x, np.int64(-1), ir.DataType.UINT8),
    ),
    "too large for halves": (
        "cast_constant_of_shape_rule",
        17,
        ["N", 6],
        FLOAT,
        lambda b, x: filled(b, x, np.float32(1e6), HALF),
    ),
    "one size left out": ("collapse_slice_rule", 17, ROW, FLOAT, lambda b, x: sliced(b, x, [0], [5], [1], [1])),
    "sizes that are not known": ("flatten_to_reshape_rule", 17, ["N", 2, "M"], FLOAT, lambda b, x: b.op("Flatten", x)),
    "no elements": ("flatten_to_reshape_rule", 17, [2, 0, 3], FLOAT, lambda b, x: b.op("Flatten", x, axis=2)),
    "five outputs are training": (
        "fuse_batchnorm_into_conv_rule",
        9,
        IMAGE,
        FLOAT,
        lambda b, x: norm(b, conv(b, x), outputs=5),
    ),
    "training_mode": (
        "fuse_batchnorm_into_gemm_rule",
        15,
        ROW,
        FLOAT,
        lambda b, x: norm(b, gemm(b, x), outputs=3, training_mode=1),
    ),
    "training_mode, one output read": (
        "fuse_batchnorm_into_conv_transpose_rule",
        15,
        IMAGE,
        FLOAT,
        lambda b, x: norm(b, pool(b, x), outputs=3, training_mode=1),
    ),
    "moments of another type": (
        "fuse_batchnorm_into_conv_rule",
        15,
        IMAGE,
        FLOAT,
        lambda b, x: norm(b, conv(b, x), dtype=np.float64),
    ),
    "pads as an attribute": (
        "fuse_pad_into_conv_rule",
        10,
        IMAGE,
        FLOAT,
        lambda b, x: conv(b, pad(b, x, attribute=True)),
    ),
    "reflected": (
        "fuse_pad_into_conv_rule",
        10,
        IMAGE,
        FLOAT,
        lambda b, x: conv(b, pad(b, x, mode="reflect", attribute=True)),
    ),
    "padded with a number": ("fuse_pad_into_conv_rule", 13, IMAGE, FLOAT, lambda b, x: conv(b, pad(b, x, value=2.0))),
    "bounds that would grow": (
        "min_min_rule",
        17,
        ROW,
        FLOAT,
        lambda b, x: b.op("Min", b.op("Min", x, number(b, 1, (4, 1))), number(b, 0.5, (1, 6))),
    ),
    "a Clip of opset 10": (
        "max_min_rule",
        10,
        ROW,
        FLOAT,
        lambda b, x: b.op("Min", b.op("Max", x, number(b, -1)), number(b, 0.5)),
    ),
    "bounds that raise the rank": (
        "max_min_rule",
        17,
        ROW,
        FLOAT,
        lambda b, x: b.op("Min", b.op("Max", x, number(b, -1, (1, 1, 1))), number(b, 0.5)),
    ),
    "bounds of unlike shapes": (
        "max_min_rule",
        17,
        ROW,
        FLOAT,
        lambda b, x: b.op("Min", b.op("Max", x, number(b, -1, (6,))), number(b, 0.5)),
    ),
    "no bounds": ("max_max_rule", 17, ROW, FLOAT, lambda b, x: b.op("Max", b.op("Max", x))),
    "bounds that cross": (
        "min_max_rule",
        17,
        ROW,
        FLOAT,
        lambda b, x: b.op("Max", b.op("Min", x, number(b, -1)), number(b, 0.5)),
    ),
    "dynamic, added": ("no_op_dynamic_scatter_nd_rule", 18, ["N", 6], FLOAT, lambda b, x: scatter_dynamic(b, x, "add")),
    **{
        f"scattered by {reduction}": (
            "no_op_static_scatter_nd_rule",
            18,
            ROW,
            FLOAT,
            lambda b, x, how=reduction: scatter(b, x, range(4), reduction=how),
        )
        for reduction in ("add", "mul", "max", "min")
    },
    "rows of an unknown number": (
        "no_op_static_scatter_nd_rule",
        18,
        ["N", 6],
        FLOAT,
        lambda b, x: scatter(b, x, range(4)),
    ),
    "rows in another order": ("no_op_static_scatter_nd_rule", 18, ROW, FLOAT, lambda b, x: scatter(b, x, [3, 2, 1, 0])),
    "dilations": (
        "normalize_pad_format_conv_rule",
        17,
        IMAGE,
        FLOAT,
        lambda b, x: conv(b, x, auto_pad="SAME_UPPER", dilations=[2, 2]),
    ),
    "sizes that are multiplied otherwise": (
        "two_reshapes_matmul_reshape_rule",
        17,
        [4, 4],
        FLOAT,
        lambda b, x: reshapes(b, x, [4, 2, 2], [4, 2, 2], [4, 4], (4, 4), reshaped=True),
    ),
    "a bias that is asked for": (
        "remove_optional_bias_from_gemm_rule",
        9,
        ROW,
        FLOAT,
        lambda b, x: gemm(b, x, np.zeros(4, np.float32)),
    ),
    "Relu, bounds as attributes": (
        "successive_clip_relu_rule",
        7,
        ROW,
        FLOAT,
        lambda b, x: clip(b, b.op("Relu", x), -1, 0.5),
    ),
    "bounds as attributes": ("successive_clip_rule", 10, ROW, FLOAT, lambda b, x: clip(b, clip(b, x, -1, 1), 0, 0.5)),
    "bounds as attributes, Relu": (
        "successive_relu_clip_rule",
        10,
        ROW,
        FLOAT,
        lambda b, x: b.op("Relu", clip(b, x, -1, 0.5)),
    ),
    "clips apart": ("successive_clip_rule", 17, ROW, FLOAT, lambda b, x: clip(b, clip(b, x, 0, 1), 2, 3)),
    "a Clip below Relu": ("successive_relu_clip_rule", 17, ROW, FLOAT, lambda b, x: b.op("Relu", clip(b, x, -2, -1))),
}
