"""Memory that products need while they run: bounded whatever the number of rows, and not kept."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import numpy as np
from onnxpress.custom_ops import _kernels

M, K, N = 16384, 2048, 16
A = np.ones((M, K), np.float32)
codes, scales = np.zeros((N, K // 32, 16), np.uint8), np.ones((N, K // 32), np.float32)
groups = K // 8  # of 4 weights, half of all
indices, offsets = np.tile(np.arange(groups, dtype=np.int32) * 2, N), np.arange(N + 1, dtype=np.int32) * groups
blocks = np.ones((N * groups, 1, 4), np.int8)
weight = _kernels.pack_block_sparse(blocks, indices, offsets, np.ones(N, np.float32), K=K, N=N)
PRODUCTS = {{
    "nbits": lambda A: _kernels.matmul_nbits(
        A, codes, scales, None, None, bits=4, block_size=32, K=K, accuracy_level=4),
    "int8": lambda A: _kernels.matmul_int8(
        A, np.ones((K, N), np.int8), None, None, None, a_format=(1.0, 0, False)),
    "sparse": lambda A: _kernels.block_sparse_matmul(A, weight, None),
}}

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

PRODUCTS[{product!r}](A[:64])
before = resident()
PRODUCTS[{product!r}](A)
print(resident() - before)
"""


@pytest.mark.unsanitized
@pytest.mark.parametrize("product", ["nbits", "int8", "sparse"])
def test_many_rows(product):
    """Their codes alone are 32 MiB."""
    script = SCRIPT.format(product=product)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 12 << 20
