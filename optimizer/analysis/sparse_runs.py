"""Ways to compute [M, K] x [K, N] with a block-sparse weight: ours, dense ones, and those of other libraries.

Each is a call without arguments. Outputs of ONNX Runtime go to memory that is there already, so that no call pays for
its allocation. Other libraries are imported where they are used, and left out where they are missing.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..sparsity import Block
from .session import open_session, session_options
from .sparse_models import compress, float_model, int8_model, sparse_model

Run = Callable[[], object]
Float32 = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]


def _in_place(model: bytes, A: Float32, N: int, threads: int | None, provider: dict[str, str] | None) -> Run:
    import onnxruntime as ort

    session = open_session(model, session_options(threads=threads, ours=True, provider=provider))
    binding = session.io_binding()
    binding.bind_cpu_input(session.get_inputs()[0].name, A)
    out = ort.OrtValue.ortvalue_from_numpy(np.zeros((A.shape[0], N), np.float32))
    binding.bind_ortvalue_output(session.get_outputs()[0].name, out)

    def run() -> object:
        session.run_with_iobinding(binding)
        return A, out  # the memory of both, to which a binding of ONNX Runtime 1.23 holds no reference

    return run


def ours(weight: Int8, block: Block, A: Float32, *, integer: bool, threads: int | None) -> Run:
    """BlockSparseMatMul, of int8 with activations rounded row by row, or of float32."""
    K, N = weight.shape
    stored = compress(weight if integer else weight.astype(np.float32), block)
    return _in_place(sparse_model(stored, K, N), A, N, threads, None)


def dense_float32(weight: Int8, A: Float32, threads: int | None) -> Run:
    """MatMul in ONNX Runtime."""
    return _in_place(float_model(weight.astype(np.float32)), A, weight.shape[1], threads, None)


def dense_int8(weight: Int8, A: Float32, threads: int | None) -> Run:
    """Our dense product, of activations rounded at run time."""
    return _in_place(int8_model(weight), A, weight.shape[1], threads, {"claim": "dynamic_matmul"})


def torch_int8(weight: Int8, A: Float32, threads: int | None) -> list[Run]:
    """OneDNN through PyTorch, from int8 to int32; the weight as it is and turned, one of which it likes better."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    a = torch.from_numpy(np.clip(np.rint(A * 40), -127, 127).astype(np.int8))
    both = torch.from_numpy(weight.copy()), torch.from_numpy(np.ascontiguousarray(weight.T)).t()
    return [partial(torch._int_mm, a, each) for each in both]


def scipy_blocks(weight: Int8, block: Block, A: Float32) -> Run:
    """BSR of SciPy in float32, one thread."""
    from scipy.sparse import bsr_array

    turned = bsr_array(weight.T.astype(np.float32), blocksize=(block.n, block.k))
    columns = np.ascontiguousarray(A.T)
    return lambda: turned @ columns


def mkl_blocks(weight: Int8, block: Block, A: Float32, threads: int | None) -> Run:
    """BSR of MKL's sparse BLAS in float32; CSR where blocks are not square, which MKL has no BSR for."""
    installed = sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*"))
    if installed:  # of the package mkl, where sparse_dot_mkl does not look for newer versions
        os.environ.setdefault("MKL_RT", str(installed[-1]))
    import sparse_dot_mkl
    from scipy.sparse import bsr_matrix, csr_matrix

    if threads is not None:
        sparse_dot_mkl.mkl_set_num_threads(threads)
    dense = weight.T.astype(np.float32)
    square = block.k == block.n
    turned = bsr_matrix(dense, blocksize=(block.n, block.k)) if square else csr_matrix(dense)
    columns = np.ascontiguousarray(A.T)
    return lambda: sparse_dot_mkl.dot_product_mkl(turned, columns)


def peers(weight: Int8, block: Block, A: Float32, threads: int | None) -> dict[str, list[Run]]:
    """Those of other libraries that are installed and take the sizes, by name; of several the fastest counts."""
    K, N = weight.shape
    fits = K % block.k == 0 and N % block.n == 0
    made: dict[str, list[Run]] = {}
    candidates: dict[str, Callable[[], Any]] = {
        "oneDNN int8": lambda: torch_int8(weight, A, threads),
        "SciPy": lambda: [scipy_blocks(weight, block, A)] if fits else [],
        "MKL": lambda: [mkl_blocks(weight, block, A, threads)] if fits else [],
    }
    for name, make in candidates.items():
        with contextlib.suppress(ImportError, OSError, RuntimeError, ValueError):
            runs = make()
            for run in runs:
                run()
            if runs:
                made[name] = runs
    return made
