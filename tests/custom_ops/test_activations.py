"""What follows the sums of a product: activations and gates against the NumPy reference, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from isas import ISAS, code_that_runs
from onnxpress.custom_ops import _kernels, reference
from pairs import all_pairs

ACTIVATIONS = ["relu", "silu", "gelu", "gelu_tanh"]
K = 32


def activated(x, activation, isa, gate=None):
    """The activation of given numbers: sums of nothing, to which they are added as a bias, in two equal rows."""
    packed = np.zeros((x.size, 1, K // 2), np.uint8)
    scales = np.zeros((x.size, 1), np.float32)
    results = []
    for M in (1, 9):
        A = np.zeros((M, K), np.float32)
        gates = None if gate is None else np.broadcast_to(gate, (M, x.size))
        for accuracy_level in (0, 4):
            got, ran = _kernels.matmul_nbits(
                A, packed, scales, None, x, bits=4, block_size=K, K=K,
                accuracy_level=accuracy_level, activation=activation, gate=gates, isa=isa,
            )  # fmt: skip
            assert ran == code_that_runs(isa, accuracy_level, M, K, K)
            results.extend(got)
    for result in results:
        np.testing.assert_array_equal(result, results[0])
    return results[0]


@pytest.mark.unsanitized  # the code of the tests below on many more numbers
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_magnitude(isa, activation):
    """Within a few units in the last place of what is multiplied; relu to the last bit."""
    steps = np.linspace(-20, 20, 100_003)
    magnitudes = np.logspace(-37, 37, 20_001)
    x = np.concatenate([steps, magnitudes, -magnitudes]).astype(np.float32)
    got = activated(x, activation, isa)
    want = reference.activate(x, activation)
    scale = np.maximum(1, np.abs(x))
    error = np.abs(got - want)
    assert np.all(error <= (0 if activation == "relu" else 1.5e-7) * scale)
    # Also where the result is small, as near 0 or in the tail to the left.
    usual = (x > -1) & (np.abs(x) > 1e-30)
    assert np.all(error[usual] <= 4e-7 * np.abs(want[usual]))
    assert abs(((got - want) / scale)[: steps.size].mean()) < 5e-9  # no bias of the kernel


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_special_values(isa, activation):
    """As ONNX Runtime gives them: -inf is multiplied by 0 by all but relu."""
    x = np.array([np.nan, np.inf, -np.inf, 0, -1e4, -3e38, 3e38, 1e-40, -1e-40] * 2, np.float32)
    got = activated(x, activation, isa)[:9]
    relu = activation == "relu"
    half = np.float32(1e-40) if relu else np.float32(1e-40) / 2
    want = [np.nan, np.inf, 0 if relu else np.nan, 0, 0, 0, 3e38, half, 0 if relu else -half]
    np.testing.assert_array_equal(got, np.array(want, np.float32))


@all_pairs(
    {
        "isa": ISAS,
        "activation": [None, *ACTIVATIONS],
        "accuracy_level": [0, 4],
        "M,N,size": [(1, 37, 64), (1, 200, 300), (5, 1, 64), (7, 100, 600), (70, 130, 64)],
    }
)
def test_products(isa, activation, accuracy_level, M, N, size):
    """Once a sum, after all of K, at sizes that divide into nothing."""
    rng = np.random.default_rng(N)
    packed = rng.integers(0, 256, (N, -(-size // 32), 16), dtype=np.uint8)
    scales = rng.uniform(0.01, 0.02, packed.shape[:2]).astype(np.float32)
    A = rng.standard_normal((M, size)).astype(np.float32)
    bias = rng.standard_normal(N).astype(np.float32)
    arguments = {"bits": 4, "block_size": 32, "K": size, "accuracy_level": accuracy_level}
    sums = reference.matmul_nbits(A, packed, scales, None, bias, **arguments)
    for gate in (None, rng.standard_normal((M, N)).astype(np.float32)):
        got, ran = _kernels.matmul_nbits(
            A, packed, scales, None, bias, **arguments, activation=activation, gate=gate, isa=isa
        )
        assert ran == code_that_runs(isa, accuracy_level, M, K, K)
        want = reference.activate(sums, activation, gate)
        scale = 1 if gate is None else np.abs(gate).max()
        np.testing.assert_allclose(got, want, atol=2e-5 * scale * np.abs(sums).max())


@all_pairs(
    {
        "isa": ISAS,
        "glu": [0, 1, 2],
        "normalized": [False, True],
        "accuracy_level": [0, 4],
        "M,N,size": [(1, 38, 64), (1, 200, 300), (5, 2, 64), (7, 100, 600), (70, 130, 64), (9000, 34, 208)],
    }
)
def test_what_stands_around_a_product(isa, glu, normalized, accuracy_level, M, N, size):
    """The norm before it, and behind it a gated linear unit or an addend; the last size comes in two chunks."""
    rng = np.random.default_rng(N)
    packed = rng.integers(0, 256, (N, -(-size // 32), 16), dtype=np.uint8)
    scales = rng.uniform(0.01, 0.02, packed.shape[:2]).astype(np.float32)
    A = rng.standard_normal((M, size)).astype(np.float32)
    bias, scale = rng.standard_normal(N).astype(np.float32), rng.uniform(0.5, 2, size).astype(np.float32)
    addend = None if glu else rng.standard_normal((M, N)).astype(np.float32)
    arguments = {"bits": 4, "block_size": 32, "K": size, "accuracy_level": accuracy_level}
    got, ran = _kernels.matmul_nbits(
        A, packed, scales, None, bias, **arguments, activation="silu" if glu else None, glu=glu, addend=addend,
        norm_scale=scale if normalized else None, norm_epsilon=1e-3, isa=isa,
    )  # fmt: skip
    assert ran == code_that_runs(isa, accuracy_level, M, K, K)
    x = reference.rms_norm(A, scale, 1e-3) if normalized else A
    sums = reference.matmul_nbits(x, packed, scales, None, bias, **arguments)
    want = reference.gated_linear_unit(sums, "silu", glu - 1) if glu else sums + addend
    factor = max(np.abs(sums).max(), 1) if glu else 1
    bound = 3e-5 * np.abs(sums).max() * factor
    if normalized and accuracy_level:
        # A rounding of the norm may change a code of an activation: seldom, and by one, of weights of up to 8 scales.
        changed = (np.abs(got - want) > bound).any(1)
        assert changed.sum() <= max(1, M // 1000)
        bound += np.abs(x).max() / 127 * scales.max() * 8 * factor
    np.testing.assert_allclose(got, want, atol=bound)


@pytest.mark.parametrize("isa", ISAS)
def test_a_row_that_is_not_finite_is_lost_alone(isa):
    A = np.ones((3, K), np.float32)
    A[1, 5] = np.nan
    packed, scales = np.full((6, 1, 16), 0x99, np.uint8), np.ones((6, 1), np.float32)
    got, _ = _kernels.matmul_nbits(
        A, packed, scales, None, None, bits=4, block_size=K, K=K, norm_scale=np.ones(K, np.float32), glu=1, isa=isa
    )
    assert np.isnan(got[1]).all()
    np.testing.assert_allclose(got[[0, 2]], K * K, rtol=1e-5)


def test_wrong_arguments():
    packed, scales, A = np.zeros((5, 1, 16), np.uint8), np.zeros((5, 1), np.float32), np.zeros((2, K), np.float32)
    for changes, message in (
        ({"activation": "selu"}, "activation must be relu, silu, gelu or gelu_tanh, got selu"),
        ({"gate": np.zeros((1, 5), np.float32)}, "gate has the wrong shape"),
        ({"addend": np.zeros((1, 5), np.float32)}, "addend has the wrong shape"),
        ({"norm_scale": np.zeros(5, np.float32)}, "norm_scale has the wrong shape"),
        ({"glu": 3}, "glu must be 0 for none, or the half that is activated"),
        ({"glu": 1}, "glu halves N, and goes without gate and addend"),
    ):
        with pytest.raises(ValueError, match=message):
            _kernels.matmul_nbits(A, packed, scales, None, None, bits=4, block_size=K, K=K, **changes)
