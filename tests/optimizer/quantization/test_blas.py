"""Threads of NumPy's products."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnxpress.optimizer.quantization import blas


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
