"""Weight rounding: the C++ against the NumPy reference bit for bit, and the reference against its own promises."""

from __future__ import annotations

import numpy as np
import pytest
from onnxpress.custom_ops import _kernels, reference

ISAS = _kernels.supported_isas()


def quantize(function, weight, transposed, bits, block_size, symmetric, search=True, scale_type="float32", **isa):
    N, K = weight.shape if transposed else weight.shape[::-1]
    blocks = -(-K // block_size)
    packed = np.zeros((N, blocks, block_size * bits // 8), np.uint8)
    scales = np.zeros((N, blocks), np.float32)
    zeros = np.zeros((N, blocks), np.uint8)
    sums = function(
        weight,
        transposed,
        bits,
        block_size,
        symmetric,
        search,
        scale_type,
        (0, N),
        packed,
        scales,
        zeros,
        **isa,
    )
    return packed, scales, zeros, sums


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_same_bits_as_reference(isa, bits, symmetric):
    rng = np.random.default_rng(bits)
    for K, N, block_size, transposed, dtype, scale_type in [
        (100, 37, 32, False, np.float32, "float32"),
        (64, 16, 16, True, np.float32, "float16"),
        (300, 5, 128, False, np.float16, "float32"),
        (17, 33, 64, True, np.float16, "float16"),
        (128, 20, 32, False, np.float32, "half"),
    ]:
        weight = rng.standard_t(4, (N, K) if transposed else (K, N)).astype(dtype)
        arguments = (weight, transposed, bits, block_size, symmetric, True, scale_type)
        want = quantize(reference.quantize_blocks, *arguments)
        got = quantize(_kernels.quantize_blocks, *arguments, isa=isa)
        for name, a, b in zip(("packed", "scales", "zero_points"), got, want, strict=False):
            np.testing.assert_array_equal(a, b, err_msg=name)
        np.testing.assert_allclose(got[3], want[3], rtol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("K", "N", "block_size", "transposed"), [(100, 37, 32, False), (17, 33, 64, True)])
def test_importance_gives_the_bits_of_the_reference_and_costs_less_where_it_is(
    isa, symmetric, K, N, block_size, transposed
):
    rng = np.random.default_rng(K)
    weight = rng.standard_t(4, (N, K) if transposed else (K, N)).astype(np.float32)
    importance = np.where(rng.random(K) < 0.2, 0, rng.standard_exponential(K)).astype(np.float32)
    arguments = (weight, transposed, 3, block_size, symmetric, True, "float32")
    want = quantize(reference.quantize_blocks, *arguments, importance=importance)
    got = quantize(_kernels.quantize_blocks, *arguments, importance=importance, isa=isa)
    for a, b in zip(got[:3], want[:3], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(got[3], want[3], rtol=1e-5)

    def weighted(found):
        packed, scales, zeros, _ = found
        offsets = _kernels.pack_zero_points(zeros, 3)
        restored = reference.dequantize(packed, scales, offsets, bits=3, block_size=block_size, K=K)
        rows = weight.T if transposed else weight
        return (importance[:, None] * np.square(restored.astype(np.float64) - rows)).sum()

    assert weighted(got) == pytest.approx(got[3][1], rel=1e-4)
    assert weighted(got) < weighted(quantize(_kernels.quantize_blocks, *arguments))


def test_importance_of_another_length_is_refused():
    weight = np.ones((32, 16), np.float32)
    with pytest.raises(ValueError, match="importance"):
        quantize(_kernels.quantize_blocks, weight, False, 4, 32, True, importance=np.ones(31, np.float32))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_reported_cost_counts_large_weights_more(bits, symmetric):
    """What the search minimised, from its definition in float64."""
    weight = np.random.default_rng(bits).standard_t(4, (96, 24)).astype(np.float32)
    packed, scales, zeros, (_, cost, baseline, _) = quantize(
        _kernels.quantize_blocks, weight, False, bits, 32, symmetric
    )
    offsets = _kernels.pack_zero_points(zeros, bits)
    restored = reference.dequantize(packed, scales, offsets, bits=bits, block_size=32, K=96)
    blocks = weight.astype(np.float64).reshape(3, 32, 24)
    counts = reference.LEAST_COUNT + np.square(blocks) / np.square(blocks).mean(axis=1, keepdims=True)
    assert (counts * np.square(restored.reshape(blocks.shape) - blocks)).sum() == pytest.approx(cost, rel=1e-4)
    assert cost < baseline
    plain = quantize(_kernels.quantize_blocks, weight, False, bits, 32, symmetric, search=False)
    assert plain[3][1] == plain[3][2] == pytest.approx(baseline, rel=1e-6)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_search_keeps_large_weights(bits, symmetric):
    """Squared error alone would cut a third off the largest of blocks with heavy tails."""
    weight = np.random.default_rng(bits).standard_t(3, (1024, 64)).astype(np.float32)
    packed, scales, zeros, _ = quantize(_kernels.quantize_blocks, weight, False, bits, 128, symmetric)
    offsets = _kernels.pack_zero_points(zeros, bits)
    restored = reference.dequantize(packed, scales, offsets, bits=bits, block_size=128, K=1024)
    blocks = np.abs(weight).reshape(8, 128, 64)
    largest = (blocks == blocks.max(axis=1, keepdims=True)).reshape(weight.shape)
    assert (restored / weight)[largest].min() > 0.8


@pytest.mark.parametrize("isa", ISAS)
def test_columns_are_independent(isa):
    """Any split into ranges of output channels gives what one call gives."""
    weight = np.random.default_rng(0).standard_normal((70, 50)).astype(np.float32)
    whole = quantize(_kernels.quantize_blocks, weight, False, 3, 32, False, isa=isa)
    packed, scales, zeros = (np.zeros_like(a) for a in whole[:3])
    for columns in [(32, 50), (0, 16), (16, 32)]:
        _kernels.quantize_blocks(weight, False, 3, 32, False, True, "float32", columns, packed, scales, zeros, isa=isa)
    for a, b in zip((packed, scales, zeros), whole, strict=False):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_constant_and_extreme_blocks(isa, symmetric):
    for value in (0.0, 1.0, -3.0, 1e-38, -1e-42, 1e18, 3e38):
        weight = np.full((32, 4), value, np.float32)
        packed, scales, zeros, _ = quantize(_kernels.quantize_blocks, weight, False, 4, 32, symmetric, isa=isa)
        assert np.isfinite(scales).all()
        restored = reference.dequantize(
            packed, scales, _kernels.pack_zero_points(zeros, 4), bits=4, block_size=32, K=32
        )
        np.testing.assert_allclose(restored, weight, rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_survive_packing(bits):
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 2**bits, (5, 3, 32), dtype=np.uint8)
    packed = reference.pack_codes(codes, bits)
    assert packed.shape == (5, 3, 32 * bits // 8)
    for module in (_kernels, reference):
        np.testing.assert_array_equal(module.unpack_codes(packed, bits, 32, 90), codes.reshape(5, -1)[:, :90])
    for count in (1, 2, 3, 7, 8, 9):
        zeros = rng.integers(0, 2**bits, (4, count), dtype=np.uint8)
        packed = _kernels.pack_zero_points(zeros, bits)
        np.testing.assert_array_equal(packed, reference.pack_zero_points(zeros, bits))
        np.testing.assert_array_equal(reference.unpack_zero_points(packed, bits, count), zeros)


@pytest.mark.parametrize("K", [-1, 31, 65, 2**40, 2**63 - 1])
def test_a_size_that_the_codes_do_not_have(K):
    """The last ones would overflow the count of blocks."""
    with pytest.raises(ValueError, match="packed has the wrong shape"):
        _kernels.unpack_codes(np.zeros((1, 2, 16), np.uint8), 4, 32, K)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_all_finite_sees_every_place(dtype):
    for size in (0, 1, 63, 5000):
        assert _kernels.all_finite(np.ones(size, dtype))
    for place in (0, 4095, 4096, 9999):
        for poison in (np.nan, np.inf, -np.inf):
            array = np.ones(10000, dtype)
            array[place] = poison
            assert not _kernels.all_finite(array)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("search", [False, True])
def test_scales_are_halves_where_these_are_normal(isa, search):
    """Elsewhere they are as precise as float32."""
    powers = np.exp2(np.linspace(-40, 40, 64)).astype(np.float32)
    weight = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32) * powers[:, None]
    arguments = (weight, True, 4, 32, False, search, "half")
    got = quantize(_kernels.quantize_blocks, *arguments, isa=isa)
    for one, other in zip(got[:3], quantize(reference.quantize_blocks, *arguments)[:3], strict=True):
        np.testing.assert_array_equal(one, other)
    scales = got[1]
    with np.errstate(over="ignore"):
        halves = scales.astype(np.float16).astype(np.float32)
    is_normal = (np.abs(scales) >= 2.0**-14) & (np.abs(scales) <= 65504)
    assert 16 < is_normal.sum() < 48
    np.testing.assert_array_equal(scales[is_normal], halves[is_normal])
    assert (scales[~is_normal] != halves[~is_normal]).any()


def test_half_precision_scales_are_halves():
    weight = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    scales = quantize(_kernels.quantize_blocks, weight, False, 4, 32, False, scale_type="float16")[1]
    np.testing.assert_array_equal(scales, scales.astype(np.float16).astype(np.float32))
