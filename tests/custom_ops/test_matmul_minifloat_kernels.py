"""The kernels of small floating-point weights against the NumPy reference, on every instruction set of this machine."""

from __future__ import annotations

import numpy as np
import pytest
from isas import ISAS, best_kernels, level_computed
from minifloats import FORMATS, SCALE_TYPES, finite_codes, make_scales, make_weight
from onnxpress.custom_ops import _kernels, reference
from pairs import all_pairs

# (M, K, N): odd N, K that is no multiple of a block or a span, single elements, rows that divide into no group.
SHAPES = [(1, 1, 1), (1, 33, 17), (2, 31, 16), (3, 64, 15), (5, 257, 31), (7, 100, 37), (13, 300, 65), (49, 40, 50)]


def code_that_runs(isa, format, accuracy_level, M, block_size):
    """The instruction set whose code computes it.

    Few rows leave tiles of AMX empty, and blocks that are no multiple of 32 tiles of k; AVX-512 VBMI is for codes of 8
    bits.
    """
    kinds = ["minifloat_bfloat16"] * (accuracy_level == 3) + ["minifloat_float"]
    unsuited = {"amx": M < 12 or block_size % 32 != 0, "avx512vbmi": reference.minifloat_bits(format) != 8}
    return best_kernels(isa, *kinds, but=tuple(name for name, is_unsuited in unsuited.items() if is_unsuited))


def tolerance(A, packed, scales, **arguments):
    """Bound on the rounding of a float32 sum: (number of additions) * epsilon * (sum of magnitudes)."""
    magnitude = np.abs(A).astype(np.float64) @ np.abs(reference.dequantize_minifloat(packed, scales, **arguments))
    return (arguments["K"] + 8) * np.finfo(np.float32).eps * magnitude + 1e-30


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("accuracy_level", [0, 3])
def test_matches_reference(isa, format, accuracy_level):
    rng = np.random.default_rng(0)
    signed = []
    for i, (M, K, N) in enumerate(SHAPES):
        for j, block_size in enumerate((16, 32, 96, 0)):
            packed, scales = make_weight(rng, format, block_size, K, N, SCALE_TYPES[(i + j) % 4])
            A = rng.standard_normal((M, K)).astype(np.float32)
            bias = rng.standard_normal(N).astype(np.float32) if M % 2 else None
            arguments = {"format": format, "block_size": block_size, "K": K}
            got, ran = _kernels.matmul_minifloat(
                A, packed, scales, bias, **arguments, accuracy_level=accuracy_level, isa=isa
            )
            level = level_computed(ran, accuracy_level)
            want = reference.matmul_minifloat(A, packed, scales, bias, **arguments, accuracy_level=level)
            assert ran == code_that_runs(isa, format, accuracy_level, M, block_size)
            bound = tolerance(A, packed, scales, **arguments) + np.finfo(np.float32).eps * np.abs(want)
            assert np.all(np.abs(got - want) <= bound), (M, K, N, block_size, np.abs(got - want).max())
            signed.append((got - want) / bound)
    # Rounding errors must cancel: a mean far from zero would be a bias of the kernel.
    assert abs(np.concatenate([e.ravel() for e in signed]).mean()) < 0.02


@all_pairs({"isa": ISAS, "format": FORMATS, "M": [1, 20], "scale_type": SCALE_TYPES})
def test_every_code_is_exact(isa, format, M, scale_type):
    """A product with one row of the identity is decode(code) * scale, to the last bit."""
    rng = np.random.default_rng(1)
    count = len(reference.MINIFLOATS[format])
    K, N = 37, count  # each column begins with another code, so that each code comes at each place of a span
    codes = ((np.arange(N)[:, None] + np.arange(K)) % count).astype(np.uint8)
    packed = reference.pack_codes(codes[:, None], reference.minifloat_bits(format))
    # Where a product is subnormal or overflows too.
    scales = make_scales(rng, (N, 1), scale_type)
    extremes = {np.uint8: [0, 1, 254], np.float16: [2.0**-24, 65504]}.get(
        scale_type, [2.0**-126, 1.5 * 2.0**-120, 3e38]
    )
    scales[: 4 * len(extremes), 0] = np.repeat(np.array(extremes, scale_type), 4)
    arguments = {"format": format, "block_size": 0, "K": K}
    with np.errstate(over="ignore"):
        want = reference.dequantize_minifloat(packed, scales, **arguments)
    is_number = np.isfinite(reference.MINIFLOATS[format])
    for k in range(K):
        A = np.zeros((M, K), np.float32)
        A[:, k] = 1
        others = codes.copy()
        others[:, np.arange(K) != k] = reference.minifloat_zero(format)
        alone = reference.pack_codes(others[:, None], reference.minifloat_bits(format))
        got, ran = _kernels.matmul_minifloat(A, alone, scales, None, **arguments, isa=isa)
        assert ran == code_that_runs(isa, format, 0, M, block_size=0)
        numbers = is_number[codes[:, k]]
        np.testing.assert_array_equal(got[:, numbers], np.broadcast_to(want[k, numbers], (M, numbers.sum())))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
def test_every_code_in_bfloat16(isa, format):
    """Exact too, but for nf4, whose values are rounded to bfloat16."""
    codes = finite_codes(format)
    packed = reference.pack_codes(codes[:, None, None], reference.minifloat_bits(format))
    scales = np.full((len(codes), 1), 3, np.float32)
    for M in (1, 7, 20):
        got, ran = _kernels.matmul_minifloat(
            np.ones((M, 1), np.float32), packed, scales, None,
            format=format, block_size=0, K=1, accuracy_level=3, isa=isa,
        )  # fmt: skip
        assert ran == code_that_runs(isa, format, 3, M, block_size=0)
        values = reference.MINIFLOATS[format][codes]
        if level_computed(ran, 3) == 3:
            values = reference.round_to_bfloat16(values)
        np.testing.assert_array_equal(got, np.broadcast_to(values * np.float32(3), got.shape))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", ["e4m3fn", "e2m3", "nf4"])
@pytest.mark.parametrize("accuracy_level", [0, 3])
def test_larger_products(isa, format, accuracy_level):
    """Several panels, segments and tasks."""
    rng = np.random.default_rng(2)
    for M, K, N, block_size in ((1, 1290, 161, 0), (31, 1024, 97, 128), (70, 608, 80, 32)):
        packed, scales = make_weight(rng, format, block_size, K, N)
        A = rng.standard_normal((M, K)).astype(np.float32)
        arguments = {"format": format, "block_size": block_size, "K": K}
        got, ran = _kernels.matmul_minifloat(
            A, packed, scales, None, **arguments, accuracy_level=accuracy_level, isa=isa
        )
        level = level_computed(ran, accuracy_level)
        want = reference.matmul_minifloat(A, packed, scales, **arguments, accuracy_level=level)
        assert ran == code_that_runs(isa, format, accuracy_level, M, block_size)
        assert np.all(np.abs(got - want) <= tolerance(A, packed, scales, **arguments))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "e4m3"}, "format is 'e4m3', must be e4m3fn"),
        ({"block_size": 24}, "block_size must be a multiple of 16, or 0"),
        ({"K": 0}, "K must be positive"),
        ({"K": 65}, "packed has the wrong shape"),
        ({"scales": np.ones((16, 1), np.float32)}, "scales has the wrong shape"),
    ],
)
def test_wrong_arguments(change, message):
    rng = np.random.default_rng(0)
    packed, scales = make_weight(rng, "e4m3fn", 32, 64, 16)
    arguments = {"packed": packed, "scales": scales, "bias": None, "format": "e4m3fn", "block_size": 32, "K": 64}
    with pytest.raises(ValueError, match=message):
        _kernels.matmul_minifloat(np.zeros((1, 64), np.float32), **{**arguments, **change})
