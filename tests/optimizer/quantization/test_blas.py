"""Threads of NumPy's products."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnxpress.optimizer.quantization import blas
from onnxpress.optimizer.quantization.gptq import inverse_factor
from onnxpress.optimizer.quantization.threads import limited

RNG = np.random.default_rng(0)


def test_one_thread_within_and_as_before_afterwards():
    np.zeros((2, 2)) @ np.zeros((2, 2))
    get, change = blas._controls()
    if "openblas" not in Path("/proc/self/maps").read_text(errors="replace"):
        pytest.skip("NumPy computes products by another library")
    change(2)
    try:
        with blas.one_thread_each():
            assert get() == 1
        assert get() == 2
    finally:
        change(1)


@pytest.mark.parametrize("shape", [(3, 40, 300), (1, 7, 1100), (20, 1300)])
def test_a_product_and_its_threads(shape):
    left = RNG.standard_normal(shape).astype(np.float32)
    right = RNG.standard_normal((*shape[:-2], shape[-1], 1300)).astype(np.float32)
    made = []
    for count in (1, 2, 3):
        with limited(count):
            made.append(blas.product(left, right))
    np.testing.assert_allclose(made[0], left @ right, rtol=1e-5, atol=1e-3)
    assert made[0].tobytes() == made[1].tobytes() == made[2].tobytes()


def test_the_factor_of_gptq_does_not_depend_on_the_threads_of_products():
    inputs = RNG.standard_normal((500, 600))
    second = (inputs.T @ inputs / 500)[None]
    _, change = blas._controls()
    made = []
    try:
        for count in (1, 2):
            change(count)
            made.append(inverse_factor(second))
    finally:
        change(1)
    assert made[0].tobytes() == made[1].tobytes()
