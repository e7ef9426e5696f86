"""Block-sparse products: integer sums equal to the reference bit for bit on every instruction set, float within the
rounding of their sums."""

from __future__ import annotations

import numpy as np
import pytest
from isas import ISAS, best_kernels
from onnxpress.custom_ops import _kernels, reference
from sparse import Case

ROWS = [*range(1, 18), 33, 64, 70, 100]
BLOCKS = [(4, 4), (4, 1), (1, 4), (1, 16), (8, 2), (3, 5), (64, 64), (1, 1), (6, 7), (12, 48), (5, 33)]


def packed(case):
    arrays = case.arrays
    return _kernels.pack_block_sparse(
        arrays["values"], arrays["indices"], arrays["offsets"], arrays.get("scales"), K=case.K, N=case.N
    )


def check(case, A, weight=None):
    """One product by the kernel of every instruction set and by the reference."""
    arrays, want, weight = case.arrays, case.reference(A), weight or packed(case)
    for isa in ISAS:
        got, ran = _kernels.block_sparse_matmul(
            A, weight, arrays.get("bias"), activation=case.activation, isa=isa,
            a_format=(float(arrays["a_scale"]), int(arrays["a_zero_point"])) if case.static else None,
            y_format=(float(arrays["y_scale"]), int(arrays["y_zero_point"])) if case.quantized_output else None,
        )  # fmt: skip
        assert ran == best_kernels(isa, "block_sparse")
        compare(case, A, got, want, isa)


def compare(case, A, got, want, isa):
    arrays = case.arrays
    assert got.shape == want.shape, isa
    assert got.dtype == (np.uint8 if case.quantized_output else np.float32), isa
    if case.integer and case.activation in ("", "relu"):
        np.testing.assert_array_equal(got, want.astype(got.dtype), isa)
        return
    if case.quantized_output:  # next to a tie of the reference's float64
        assert np.abs(got.astype(int) - want.astype(int)).max(initial=0) <= 1, isa
        assert (got != want).mean() < 0.01, isa
        return
    # Sums have K roundings, activations a few; their slope is below 1.2.
    size = np.abs(want)
    if not case.integer:
        dense = reference.decode_blocks(arrays["values"], arrays["indices"], arrays["offsets"], case.K, case.N)
        size = np.abs(A).astype(np.float64) @ np.abs(dense)
    bound = 1.2 * np.finfo(np.float32).eps * (case.K + 2) * (size + np.abs(arrays.get("bias", np.float32(0))) + 1)
    assert (np.abs(got - want) <= bound).all(), isa


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_awkward_shapes(block):
    """Every number of rows with every size; what else can vary varies along."""
    for i, (K, N) in enumerate([(1, 1), (3, 17), (37, 29), (64, 64), (65, 16), (130, 131)]):
        for integer in (True, False):
            case = Case(K, N, *block, (0.2, 0.7, 1)[i % 3], integer, bias=i % 2 == 0, seed=i)
            weight = packed(case)
            for M in ROWS:
                check(case, case.feed(M), weight)


@pytest.mark.parametrize("block", [(4, 1), (12, 1), (64, 1)], ids=str)
def test_blocks_of_one_output_in_several_parts(block):
    """Of outputs (64) and of k (1024 of int8, 256 of float32), some without a weight, blocks in two of them."""
    for i, (K, N) in enumerate([(1023, 65), (2090, 70), (300, 130)]):
        for integer in (True, False):
            case = Case(K, N, *block, (0.02, 0.1, 0.5)[i], integer, bias=True, quantized_output=i == 1, seed=i)
            weight = packed(case)
            for M in (17, 33):
                check(case, case.feed(M), weight)


@pytest.mark.parametrize("block", [(4, 4), (4, 1), (1, 4), (5, 3)], ids=str)
def test_every_epilogue(block):
    for integer in (True, False):
        for static, uint8 in [(False, False), (True, False), (True, True)] if integer else [(False, False)]:
            for activation in ("", "relu", "gelu", "gelu_tanh"):
                for quantized in (False, True):
                    case = Case(
                        70, 37, *block, 0.5, integer, uint8, static, bias=activation != "relu",
                        activation=activation, quantized_output=quantized,
                    )  # fmt: skip
                    for M in (1, 5, 40):
                        check(case, case.feed(M))


@pytest.mark.parametrize("block", [(4, 4), (1, 4), (4, 1)], ids=str)
def test_nothing_and_everything_stored(block):
    for density in (0, 1):
        for integer in (True, False):
            case = Case(50, 40, *block, density, integer, bias=True)
            for M in (0, 1, 20):
                check(case, case.feed(M))


def test_long_and_wide():
    """Several tasks, several chunks of gathered groups, and rows of uneven length."""
    for K, N, block in [(3000, 40, (1, 4)), (2100, 200, (4, 1)), (600, 600, (4, 4)), (2080, 33, (3, 1))]:
        for integer in (True, False):
            case = Case(K, N, *block, 0.4, integer)
            weight = packed(case)
            for M in (2, 50):
                check(case, case.feed(M), weight)


@pytest.mark.parametrize("block", [(4, 4), (4, 1), (1, 4), (1, 1)], ids=str)
def test_rows_in_chunks(block):
    """More than are computed at once."""
    for K, M, integer in [(1000, 9000, True), (1024, 9000, True), (1000, 2500, False)]:
        case = Case(K, 18, *block, 0.1, integer, uint8=integer and K == 1024, static=integer and K == 1024)
        check(case, case.feed(M))


@pytest.mark.parametrize("M", [1, 4, 33])
def test_extreme_codes_do_not_saturate(M):
    for block in [(4, 4), (1, 4)]:
        for value, code in [(-128, 255), (127, 255), (-128, 0)]:
            case = Case(512, 32, *block, 1, uint8=True, static=True)
            case.arrays["values"][:] = value
            for zero_point in (0, 255):
                case.arrays["a_zero_point"] = np.uint8(zero_point)
                check(case, np.full((M, 512), code, np.uint8))


@pytest.mark.parametrize("M", [3, 20])
def test_rows_of_zeros_and_rows_that_are_no_numbers(M):
    case = Case(density=1, bias=True)
    A = case.feed(M)
    A[0] = 0
    A[1, 7] = np.nan
    A[2, 36] = -np.inf
    check(case, A)
    A = case.feed(M)
    A[0] *= np.float32(1e-45) / np.abs(A[0]).max()  # whose scale is zero
    A[1] *= np.float32(1e-37) / np.abs(A[1]).max()  # subnormal
    A[2] *= np.float32(1e38) / np.abs(A[2]).max()
    check(case, A)


def test_ties_are_rounded_to_even():
    """A row's scale is 1 where its greatest is 127."""
    values = np.arange(-126.5, 127, 1, dtype=np.float32)
    case = Case(255, 255, 1, 1)
    case.arrays = {
        "values": np.ones((255, 1, 1), np.int8), "indices": np.arange(255, dtype=np.int32),
        "offsets": np.arange(256, dtype=np.int32), "scales": np.ones(255, np.float32),
    }  # fmt: skip
    A = np.concatenate([values, np.float32([127])])[None]
    for rows in (1, 9):
        check(case, np.repeat(A, rows, axis=0))


def test_an_empty_weight_takes_little():
    offsets = np.zeros((1 << 10) // 64 + 1, np.int32)
    empty = np.zeros((0, 64, 64), np.float32)
    weight = _kernels.pack_block_sparse(empty, np.zeros(0, np.int32), offsets, None, K=1 << 26, N=1 << 10)
    assert weight.nbytes < 1 << 16


FAULTS = [
    ({"K": 0}, "K is 0"),
    ({"K": 1 << 27}, "K is"),
    ({"N": 0}, "N is 0"),
    ({"values": np.zeros((2, 65, 4), np.int8)}, "block_n is 65"),
    ({"values": np.zeros((2, 4, 0), np.int8)}, "block_k is 0"),
    ({"values": np.zeros((2, 4, 4), np.int32)}, "values must be int8 or float32"),
    ({"values": np.zeros((2, 16), np.int8)}, "values must have three axes"),
    ({"values": np.zeros((3, 4, 4), np.int8)}, "indices has the wrong shape"),
    ({"indices": np.int32([0])}, "indices has the wrong shape"),
    ({"indices": np.int32([0, 2])}, "indices have 2 at 1, must be 0 to 1"),
    ({"indices": np.int32([-1, 1])}, "indices have -1 at 0"),
    ({"indices": np.int32([1, 0])}, "indices do not rise at 1, in block row 0"),
    ({"indices": np.int32([1, 1])}, "indices do not rise at 1"),
    ({"offsets": np.int32([0, 2])}, "offsets has the wrong shape"),
    ({"offsets": np.int32([1, 2, 2])}, "offsets begin with 1"),
    ({"offsets": np.int32([0, 3, 2])}, "offsets fall after block row 1"),
    ({"offsets": np.int32([0, -1, 2])}, "offsets fall after block row 0"),
    ({"offsets": np.int32([0, 1, 1])}, "offsets end with 1, but there are 2 blocks"),
    ({"offsets": np.int32([0, 2, 2]), "values": np.ones((2, 4, 4), np.int8)}, "values of block 1 beyond K or N"),
    ({"scales": np.zeros(6, np.float32)}, "scales has the wrong shape"),
    ({"scales": None}, "int8 values need scales"),
    ({"values": np.zeros((2, 4, 4), np.float32)}, "scales are of int8 values"),
    ({"values": np.full((2, 4, 4), np.nan, np.float32), "scales": None}, "values of block 1 beyond K or N"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_faults(change, message):
    arguments = {
        "values": np.zeros((2, 4, 4), np.int8), "indices": np.int32([0, 1]), "offsets": np.int32([0, 2, 2]),
        "scales": np.ones(7, np.float32), "K": 6, "N": 7, **change,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        _kernels.pack_block_sparse(**arguments)


@pytest.mark.parametrize("integer", [True, False])
def test_sums_beyond_int32(integer):
    """The largest that there can be fits for 65,793 codes of an output, of whatever K."""
    for stored, K in ((65792, 65792), (65792, 100000), (65796, 65796)):
        values = np.full((stored // 4, 1, 4), -128, np.int8 if integer else np.float32)
        indices, offsets = np.arange(stored // 4, dtype=np.int32), np.int32([0, stored // 4])
        arguments = values, indices, offsets, np.ones(1, np.float32) if integer else None
        if integer and stored > 65793:
            with pytest.raises(ValueError, match="block row 0 stores 65796 int8 values for each output, whose sums"):
                _kernels.pack_block_sparse(*arguments, K=K, N=1)
            continue
        weight = _kernels.pack_block_sparse(*arguments, K=K, N=1)
        formats = {"a_format": (1.0, 0)} if integer else {}
        got, _ = _kernels.block_sparse_matmul(np.full((20, K), 255, np.float32), weight, None, **formats)
        np.testing.assert_allclose(got, -128.0 * 255 * stored, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": np.zeros((2, 38), np.float32)}, "A has the wrong shape"),
        ({"A": np.zeros((37,), np.float32)}, "A must have two axes"),
        ({"A": np.zeros((2, 37), np.uint8)}, "A must be float32, or uint8 with a_format"),
        ({"bias": np.zeros(30, np.float32)}, "bias has the wrong shape"),
        ({"activation": "tanh"}, "activation must be"),
        ({"activation": "silu"}, "activation must be"),
        ({"a_format": (1.0, 256)}, "zero point out of range"),
        ({"isa": "sse9"}, "unknown instruction set"),
    ],
)
def test_wrong_arguments(change, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        _kernels.block_sparse_matmul(**{"A": np.zeros((2, 37), np.float32), "weight": packed(Case()), **change})
