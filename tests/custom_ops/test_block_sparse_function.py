"""The function body of BlockSparseMatMul on a runtime without this library."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxpress.custom_ops import functions, reference
from sessions import options
from sparse import FORMS, Case

pytestmark = pytest.mark.unsanitized  # ONNX Runtime computes


def run(model, A, level=ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
    (y,) = ort.InferenceSession(model, options(graph_optimization_level=level)).run(None, {"A": A})
    return y


def check(case, got, want):
    """The sums are exact and few operations on float32 follow; in float32 the sums have K roundings."""
    assert got.shape == want.shape
    if case.quantized_output:
        assert got.dtype == np.uint8
        assert np.abs(got.astype(int) - want.astype(int)).max(initial=0) <= 1  # next to a tie
        assert (got != want).mean() < 0.01
    else:
        bound = 1e-6 * (1 if case.integer else case.K) * max(1, np.abs(want).max(initial=0))
        np.testing.assert_allclose(got, want, rtol=0, atol=bound)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("opset", [functions.MIN_OPSET, 21])
def test_all_forms(form, opset):
    case = Case(**form)
    model = case.model(opset=opset)
    onnx.checker.check_model(model, full_check=True)
    A = case.feed(2, 3)
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        check(case, run(model, A, level), case.reference(A))


@pytest.mark.parametrize("density", [0, 0.2, 1])
@pytest.mark.parametrize("block", [(4, 4), (4, 1), (1, 4), (1, 16), (64, 64), (7, 3)], ids=str)
@pytest.mark.parametrize("integer", [False, True])
def test_blocks_and_densities(block, density, integer):
    """Empty block rows among them, and weights of one block."""
    for K, N in [(37, 29), (64, 64), (1, 1)]:
        case = Case(K, N, *block, density, integer, bias=True)
        A = case.feed(2, 3)
        check(case, run(case.model(), A), case.reference(A))


def test_rows_of_zeros_and_rows_that_are_no_numbers():
    case = Case(density=1)
    A = case.feed(1, 6)
    A[0, 1] = 0
    A[0, 2, 7] = np.nan
    A[0, 3, 36] = -np.inf
    A[0, 4] *= np.float32(1e-45) / np.abs(A[0, 4]).max()
    got = run(case.model(), A)
    np.testing.assert_array_equal(np.isnan(got[0]).all(axis=1), [False, False, True, True, False, False])
    np.testing.assert_allclose(got, case.reference(A), rtol=1e-5, atol=1e-6)
    assert (got[0, 1] == 0).all()


def test_extreme_codes_do_not_saturate():
    case = Case(K=64, block_k=8, density=1, uint8=True, static=True)
    case.arrays |= {"values": np.full_like(case.arrays["values"], -128), "a_zero_point": np.uint8(0)}
    case.arrays["values"][-4:, 1:] = 0  # the padding of N
    A = np.full((1, 2, 64), 255, np.uint8)
    check(case, run(case.model(), A), case.reference(A))


def test_decoded_blocks_lie_where_they_were():
    values = np.arange(1, 13, dtype=np.float32).reshape(3, 2, 2)  # 2 outputs, 2 k
    weight = reference.decode_blocks(values, np.int32([1, 0, 2]), np.int32([0, 1, 3]), 6, 4)
    np.testing.assert_array_equal(
        weight.T, [[0, 0, 1, 2, 0, 0], [0, 0, 3, 4, 0, 0], [5, 6, 0, 0, 9, 10], [7, 8, 0, 0, 11, 12]]
    )


def test_overloads_tell_everything_apart():
    names = [Case(**form).function().overload for form in FORMS]
    names += [Case(block_k=5).function().overload, Case(K=38).function().overload, Case(N=30).function().overload]
    assert len(set(names)) == len(names)
