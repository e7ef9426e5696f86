"""The kernels against the NumPy reference, on every instruction set of this machine."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from isas import ISAS, code_that_runs, level_computed
from onnxpress.custom_ops import _kernels, reference
from pairs import all_pairs

BITS = range(2, 9)
LEVELS = (0, 3, 4)
SCALE_TYPES = (np.float32, np.float16, ml_dtypes.bfloat16)
# (M, K, N): odd N, K that is no multiple of a block or a span, single elements, rows that divide into no group.
SHAPES = [
    (1, 1, 1),
    (1, 33, 17),
    (2, 31, 16),
    (3, 64, 15),
    (5, 257, 31),
    (7, 100, 37),
    (13, 300, 65),
    (49, 40, 50),
]


def make_weight(rng, bits, block_size, K, N, zero_points, scale_type=np.float32):
    """A packed weight of random codes: every code of every width occurs."""
    blocks = -(-K // block_size)
    codes = rng.integers(0, 2**bits, (N, blocks, block_size), dtype=np.uint8)
    packed = reference.pack_codes(codes, bits)
    scales = (rng.uniform(0.5, 1.5, (N, blocks)) * rng.choice([-1, 1], (N, blocks))).astype(scale_type)
    if zero_points == "packed":
        zeros = reference.pack_zero_points(rng.integers(0, 2**bits, (N, blocks), dtype=np.uint8), bits)
    elif zero_points == "float":
        zeros = rng.uniform(0, 2**bits - 1, (N, blocks)).astype(scale_type)
    else:
        zeros = None
    return packed, scales, zeros


def tolerance(A, packed, scales, zeros, bits, block_size, K):
    """Bound on the rounding of a float32 sum: (number of additions) * epsilon * (sum of magnitudes)."""
    weight = np.abs(reference.dequantize(packed, scales, zeros, bits=bits, block_size=block_size, K=K))
    # Zero points leave the sum as a product of their own, so code and zero point count apart.
    scale = np.repeat(np.abs(scales.astype(np.float64)), block_size, axis=1)[:, :K].T
    magnitude = np.abs(A).astype(np.float64) @ (weight + 2 * 2**bits * scale)
    return (K + 8) * np.finfo(np.float32).eps * magnitude + 1e-30


def by_isa(A, packed, scales, zeros, bias, *, accuracy_level, **arguments):
    """Each instruction set, the one whose code ran, its result and that of the reference, which is computed once."""
    wanted = {}
    for isa in ISAS:
        got, ran = _kernels.matmul_nbits(
            A, packed, scales, zeros, bias, **arguments, accuracy_level=accuracy_level, isa=isa
        )
        level = level_computed(ran, accuracy_level)
        if level not in wanted:
            wanted[level] = reference.matmul_nbits(A, packed, scales, zeros, bias, **arguments, accuracy_level=level)
        yield isa, ran, got, wanted[level]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("accuracy_level", LEVELS)
def test_matches_reference(bits, accuracy_level):
    rng = np.random.default_rng(bits)
    signed = {isa: [] for isa in ISAS}
    for M, K, N in SHAPES:
        for block_size in (16, 32, 64):
            for zero_points in (None, "packed", "float"):
                scale_type = np.float16 if (M + block_size) % 3 == 0 else np.float32
                packed, scales, zeros = make_weight(rng, bits, block_size, K, N, zero_points, scale_type)
                A = rng.standard_normal((M, K)).astype(np.float32)
                bias = rng.standard_normal(N).astype(np.float32) if M % 2 else None
                bound = tolerance(A, packed, scales, zeros, bits, block_size, K)
                problem = {"bits": bits, "block_size": block_size, "K": K, "accuracy_level": accuracy_level}
                for isa, ran, got, want in by_isa(A, packed, scales, zeros, bias, **problem):
                    assert ran == code_that_runs(isa, accuracy_level, M, block_size, K)
                    error = got - want
                    assert np.all(np.abs(error) <= bound), (isa, M, K, N, block_size, zero_points, np.abs(error).max())
                    signed[isa].append(error / bound)
    # Rounding errors must cancel: a mean far from zero would be a bias of the kernel.
    for isa, errors in signed.items():
        assert abs(np.concatenate([e.ravel() for e in errors]).mean()) < 0.02, isa


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("accuracy_level", LEVELS)
def test_block_sizes(bits, accuracy_level):
    """Any multiple of 16, and one block for all of K, which then divides into nothing."""
    rng = np.random.default_rng(bits)
    sizes = [(48, 100), (96, 300), (160, 320), (512, 600), (1024, 1030), (4096, 70), (100, 100), (1, 1), (1290, 1290)]
    for i, (block_size, K) in enumerate(sizes):
        zero_points, scale_type = ((None, "packed", "float")[(i + bits) % 3], SCALE_TYPES[(i + bits // 3) % 3])
        packed, scales, zeros = make_weight(rng, bits, block_size, K, 33, zero_points, scale_type)
        A = rng.standard_normal((1 + i % 3 * 8, K)).astype(np.float32)
        A[:, ::97] *= 30  # outliers, which a block should keep to itself
        bound = tolerance(A, packed, scales, zeros, bits, block_size, K)
        problem = {"bits": bits, "block_size": block_size, "K": K, "accuracy_level": accuracy_level}
        for isa, ran, got, want in by_isa(A, packed, scales, zeros, None, **problem):
            assert ran == code_that_runs(isa, accuracy_level, len(A), block_size, K)
            assert np.all(np.abs(got - want) <= bound), (isa, block_size, K)


@all_pairs({"isa": ISAS, "accuracy_level": LEVELS, "scale_type": [np.float16, ml_dtypes.bfloat16], "M": [1, 5, 8]})
def test_scales_that_fit_16_bits_are_held_in_them(isa, accuracy_level, scale_type, M):
    """Also those that come as float32, with the same results to the last bit; one scale that does not fit widens all.

    float16 with its subnormals, its largest number and both zeros.
    """
    rng = np.random.default_rng(0)
    arguments = {"bits": 4, "block_size": 32, "K": 96}
    packed, scales, zeros = make_weight(rng, 4, 32, 96, 48, "packed", scale_type)
    scales[0] = [0, -0.0, 3 * 2.0**-24 if scale_type == np.float16 else 2.0**-120]
    scales[1] = [65504, 2.0**-14, -(2.0**-14) - 2.0**-24] if scale_type == np.float16 else [2.0**120, 2.0**-126, 1]
    wide = scales.astype(np.float32)
    spoiled = wide.copy()
    spoiled[-1, -1] = np.float32(1 + 2.0**-12 if scale_type == np.float16 else 1 + 2.0**-11)
    sizes = [_kernels.pack(packed, each, zeros, **arguments).nbytes for each in (scales, wide, spoiled)]
    assert sizes[0] == sizes[1] == sizes[2] - 2 * wide.size
    A = rng.standard_normal((M, 96)).astype(np.float32)
    results = []
    for each in (scales, wide, spoiled):
        got, ran = _kernels.matmul_nbits(
            A, packed, each, zeros, None, **arguments, accuracy_level=accuracy_level, isa=isa
        )
        assert ran == code_that_runs(isa, accuracy_level, M, 32, 96)
        results.append(got)
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2][:, :-1], results[0][:, :-1])
    level = level_computed(ran, accuracy_level)
    want = reference.matmul_nbits(A, packed, scales, zeros, **arguments, accuracy_level=level)
    assert np.all(np.abs(results[0] - want) <= tolerance(A, packed, scales, zeros, 4, 32, 96))


@pytest.mark.parametrize(
    ("scale", "short"),
    [
        (1.5, True),
        (65504, True),
        (65536 + 64, False),
        (1 + 2**-11, False),
        (513 * 2**-24, True),
        ((1 + 2**-8) * 2**-20, False),
        (np.inf, True),
        (np.nan, True),
        (0.1, False),
    ],
)
def test_which_scales_fit_16_bits(scale, short):
    """float16 ends at 65504 and at steps of 2**-24; bfloat16 has 8 bits, infinity and NaN."""
    packed, scales, _ = make_weight(np.random.default_rng(0), 4, 32, 32, 16, None)
    scales[:] = scale
    assert _kernels.pack(packed, scales, None, bits=4, block_size=32, K=32).nbytes == 256 + 16 * (2 if short else 4)


@all_pairs({"isa": ISAS, "bits": BITS, "M": [1, 6, 17], "accuracy_level": [3, 4]})
def test_integer_sums_are_exact(isa, bits, M, accuracy_level):
    """Activations on the int8 grid and scales of powers of two leave nothing to round: equal to the last bit."""
    rng = np.random.default_rng(bits)
    K, N, block_size = 4100, 35, 32
    packed, scales, _ = make_weight(rng, bits, block_size, K, N, "packed")
    scales = np.exp2(rng.integers(-2, 2, scales.shape)).astype(np.float32)
    A = rng.integers(-127, 128, (M, K)).astype(np.float32)
    A[:, ::block_size] = 127  # so that the scale of each block is 1
    got, ran = _kernels.matmul_nbits(
        A[:, :1024], packed[:, :32], np.ascontiguousarray(scales[:, :32]), None, None,
        bits=bits, block_size=block_size, K=1024, accuracy_level=accuracy_level, isa=isa,
    )  # fmt: skip
    codes = reference.unpack_codes(packed[:, :32], bits, block_size, 1024).astype(np.int64) - 2 ** (bits - 1)
    exact = np.zeros((M, N))
    for b in range(32):
        part = slice(b * block_size, (b + 1) * block_size)
        exact += (A[:, part].astype(np.int64) @ codes[:, part].T) * scales[:, b].astype(np.float64)
    assert ran == code_that_runs(isa, accuracy_level, M, block_size, 1024)
    np.testing.assert_array_equal(got, exact)


@pytest.mark.skipif("avx512bf16" not in ISAS, reason="this CPU does not multiply bfloat16")
@pytest.mark.parametrize("M", [1, 6])
def test_activations_are_rounded_to_bfloat16(M):
    """To nearest even, seen through a weight of one code a column that is not zero."""
    K, N = 64, 64
    codes = np.full((N, K), 8, np.uint8) + np.eye(N, K, dtype=np.uint8)
    packed = reference.pack_codes(codes.reshape(N, 2, 32), 4)
    steps = np.array([0, 1, 0.5, 1.5, 0.5 + 2.0**-16, 0.5 - 2.0**-16, 255.5, -0.5, -1.5, 3e38, 1e-37], np.float32)
    A = np.resize(steps, (M, K)) * np.float32(2.0**-7) + np.float32(1)
    A[:, 1::2] = np.random.default_rng(0).standard_normal((M, K // 2)) * 1e10
    got, ran = _kernels.matmul_nbits(
        A, packed, np.ones((N, 2), np.float32), None, None,
        bits=4, block_size=32, K=K, accuracy_level=3, isa="avx512bf16",
    )  # fmt: skip
    assert ran == "avx512bf16"
    np.testing.assert_array_equal(got, A.astype(ml_dtypes.bfloat16).astype(np.float32))
    np.testing.assert_array_equal(reference.round_to_bfloat16(A), got)


@pytest.mark.parametrize("isa", ISAS)
def test_extreme_codes_do_not_saturate(isa):
    """All codes at an end of their range against activations at an end of theirs, the worst case of 16-bit sums."""
    for bits in BITS:
        for code, value in [(0, 1.0), (2**bits - 1, 1.0), (0, -1.0), (2**bits - 1, -1.0)]:
            K, N = 512, 16
            packed = reference.pack_codes(np.full((N, K // 256, 256), code, np.uint8), bits)
            scales = np.ones((N, K // 256), np.float32)
            for M in (1, 3, 16):
                A = np.full((M, K), value, np.float32)
                got, _ = _kernels.matmul_nbits(
                    A, packed, scales, None, None, bits=bits, block_size=256, K=K, accuracy_level=4, isa=isa
                )
                np.testing.assert_allclose(got, value * K * (code - 2 ** (bits - 1)), rtol=1e-6)


@all_pairs({"isa": ISAS, "M": [1, 4, 17], "accuracy_level": LEVELS, "poison": [np.nan, np.inf, -np.inf]})
def test_poison_is_not_lost(isa, M, accuracy_level, poison):
    """A NaN or an infinity in a row spoils that row and no other."""
    rng = np.random.default_rng(0)
    packed, scales, _ = make_weight(rng, 4, 32, 100, 20, None)
    A = rng.standard_normal((M, 100)).astype(np.float32)
    A[-1, 37] = poison
    got, _ = _kernels.matmul_nbits(
        A, packed, scales, None, None, bits=4, block_size=32, K=100, accuracy_level=accuracy_level, isa=isa
    )
    assert not np.isfinite(got[-1]).any()
    assert np.isfinite(got[:-1]).all()


@pytest.mark.parametrize("isa", ISAS)
def test_blocks_of_zeros_and_tiny_values(isa):
    rng = np.random.default_rng(0)
    packed, scales, _ = make_weight(rng, 4, 32, 96, 20, None)
    A = rng.standard_normal((3, 96)).astype(np.float32)
    A[:, 32:64] = 0
    A[:, 64:] = 1e-40
    want = reference.matmul_nbits(A, packed, scales, bits=4, block_size=32, K=96, accuracy_level=4)
    got, _ = _kernels.matmul_nbits(
        A, packed, scales, None, None, bits=4, block_size=32, K=96, accuracy_level=4, isa=isa
    )
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


def test_long_reductions_come_in_stretches():
    """K beyond one unpacked panel, for each path."""
    rng = np.random.default_rng(1)
    K, N = 9000, 33
    for block_size in (16, 256):
        packed, scales, zeros = make_weight(rng, 3, block_size, K, N, "packed")
        A = rng.standard_normal((19, K)).astype(np.float32)
        bound = tolerance(A, packed, scales, zeros, 3, block_size, K)
        for accuracy_level in LEVELS:
            problem = {"bits": 3, "block_size": block_size, "K": K, "accuracy_level": accuracy_level}
            for isa, _, got, want in by_isa(A, packed, scales, zeros, None, **problem):
                assert np.all(np.abs(got - want) <= bound), (isa, block_size, accuracy_level)


# Chunks are made by the same code for all; a sanitizer sees it run once.
@pytest.mark.parametrize("isa", [*(pytest.param(isa, marks=pytest.mark.unsanitized) for isa in ISAS[:-1]), ISAS[-1]])
@pytest.mark.parametrize("accuracy_level", [3, 4])
def test_rows_in_chunks(isa, accuracy_level):
    """More than are computed at once: each row is, bit for bit, as it is among few."""
    K, N, M = 1000, 9, 9000
    rng = np.random.default_rng(0)
    packed, scales, zeros = make_weight(rng, 4, 32, K, N, "packed")
    A, gate = rng.standard_normal((M, K), np.float32), rng.standard_normal((M, N), np.float32)
    settings = {"bits": 4, "block_size": 32, "K": K, "accuracy_level": accuracy_level, "isa": isa}

    def product(rows):
        return _kernels.matmul_nbits(
            A[rows],
            packed,
            scales,
            zeros,
            np.arange(N, dtype=np.float32),
            activation="silu",
            gate=gate[rows],
            **settings,
        )[0]

    parts = [product(slice(begin, begin + 1500)) for begin in range(0, M, 1500)]
    np.testing.assert_array_equal(product(slice(None)), np.concatenate(parts))


def test_no_rows():
    packed, scales, _ = make_weight(np.random.default_rng(0), 4, 32, 64, 16, None)
    got, _ = _kernels.matmul_nbits(
        np.zeros((0, 64), np.float32), packed, scales, None, None, bits=4, block_size=32, K=64
    )
    assert got.shape == (0, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 1}, "bits must be 2 to 8"),
        ({"bits": 9}, "bits must be 2 to 8"),
        ({"block_size": 24}, "multiple of 16, or K, got 24"),
        ({"block_size": 0}, "multiple of 16, or K, got 0"),
        ({"block_size": 48}, "packed has the wrong shape"),
        ({"block_size": 2**62}, "multiple of 16"),
        ({"K": 65}, "packed has the wrong shape"),
        ({"isa": "sse9"}, "unknown instruction set"),
    ],
)
def test_wrong_arguments(change, message):
    packed, scales, _ = make_weight(np.random.default_rng(0), 4, 32, 64, 16, None)
    arguments = {"bits": 4, "block_size": 32, "K": 64, **change}
    with pytest.raises((ValueError, RuntimeError), match=message):
        _kernels.matmul_nbits(np.zeros((1, 64), np.float32), packed, scales, None, None, **arguments)
