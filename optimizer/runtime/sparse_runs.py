"""Ways to compute [M, K] x [K, N] with a block-sparse weight: ours, dense ones, and those of other libraries.

Each is a call without arguments. Outputs of ONNX Runtime go to memory that is there already, so that no call pays for
its allocation. Other libraries are imported where they are used, and left out where they are missing.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..sparsity import Block
from . import sparse_models
from .session import open_session, session_options

Run = Callable[[], object]
Float32 = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]
UInt8 = npt.NDArray[np.uint8]


def codes_of(A: Float32) -> UInt8:
    """Activations of unit variance as uint8 codes."""
    codes: UInt8 = np.clip(np.rint(A / sparse_models.A_SCALE) + sparse_models.MIDDLE, 0, 255).astype(np.uint8)
    return codes


def _in_place(model: bytes, A: Float32 | UInt8, N: int, threads: int | None, provider: dict[str, str] | None) -> Run:
    import onnxruntime as ort

    session = open_session(model, session_options(threads=threads, ours=True, provider=provider))
    binding = session.io_binding()
    binding.bind_cpu_input(session.get_inputs()[0].name, A)
    out = ort.OrtValue.ortvalue_from_numpy(np.zeros((A.shape[0], N), A.dtype))
    binding.bind_ortvalue_output(session.get_outputs()[0].name, out)

    def run() -> object:
        session.run_with_iobinding(binding)
        return A, out  # the memory of both, to which a binding of ONNX Runtime 1.23 holds no reference

    return run


def ours(weight: Int8, block: Block, A: Float32, *, dtype: str, threads: int | None) -> Run:
    """BlockSparseMatMul.

    Args:
        weight: [K, N].
        block: Sizes of a block.
        A: [M, K], of unit variance.
        dtype: "int8" rounds activations row by row, "uint8" goes from codes to codes, "float32" rounds nothing.
        threads: Threads; all cores by default.
    """
    K, N = weight.shape
    stored = sparse_models.compress(weight.astype(np.float32) if dtype == "float32" else weight, block)
    codes = dtype == "uint8"
    model = sparse_models.sparse_model(stored, K, N, codes=codes)
    return _in_place(model, codes_of(A) if codes else A, N, threads, None)


def dense_float32(weight: Int8, A: Float32, threads: int | None) -> Run:
    """MatMul in ONNX Runtime."""
    return _in_place(sparse_models.float_model(weight.astype(np.float32)), A, weight.shape[1], threads, None)


def dense_int8(weight: Int8, A: Float32, threads: int | None) -> Run:
    """Our dense product, of activations rounded at run time."""
    return _in_place(sparse_models.int8_model(weight), A, weight.shape[1], threads, {"claim": "dynamic_matmul"})


def dense_codes(weight: Int8, A: Float32, threads: int | None) -> Run:
    """QLinearMatMul in ONNX Runtime, from codes to codes."""
    return _in_place(sparse_models.qlinear_model(weight), codes_of(A), weight.shape[1], threads, None)


def torch_int8(weight: Int8, A: Float32, threads: int | None) -> list[Run]:
    """OneDNN through PyTorch, from int8 to int32; the weight as it is and turned, one of which it likes better."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    a = torch.from_numpy(np.clip(np.rint(A * 40), -127, 127).astype(np.int8))
    both = torch.from_numpy(weight.copy()), torch.from_numpy(np.ascontiguousarray(weight.T)).t()
    return [partial(torch._int_mm, a, each) for each in both]


def torch_linear(weight: Int8, A: Float32, threads: int | None, *, codes: bool) -> list[Run]:
    """PyTorch's quantized layers, by each of its engines for x86: of codes to codes, or of float32, rounded inside."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    K, N = weight.shape
    scales, zeros = torch.full((N,), sparse_models.W_SCALE), torch.zeros(N, dtype=torch.int64)
    turned = torch.from_numpy(np.ascontiguousarray(weight.T))
    rows = torch.from_numpy(A)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such tensors are deprecated
        quantized = torch._make_per_channel_quantized_tensor(turned, scales, zeros, 0)
        rounded = torch.quantize_per_tensor(rows, sparse_models.A_SCALE, sparse_models.MIDDLE, torch.quint8)
    out = sparse_models.y_scale(K), sparse_models.MIDDLE
    runs: list[Run] = []
    before = torch.backends.quantized.engine
    for engine in ("x86", "fbgemm"):
        torch.backends.quantized.engine = engine
        packed = torch.ops.quantized.linear_prepack(quantized, None)
        if codes:
            runs.append(partial(torch.ops.quantized.linear, rounded, packed, *out))
        else:
            runs.append(partial(torch.ops.quantized.linear_dynamic, rows, packed))
    torch.backends.quantized.engine = before
    return runs


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


def peers(weight: Int8, block: Block, A: Float32, threads: int | None, *, codes: bool = False) -> dict[str, list[Run]]:
    """Those of other libraries that are installed and take the sizes, by name; of several the fastest counts."""
    K, N = weight.shape
    fits = K % block.k == 0 and N % block.n == 0
    made: dict[str, list[Run]] = {}
    candidates: dict[str, Callable[[], Any]] = {
        "oneDNN int8": lambda: torch_int8(weight, A, threads),
        "PyTorch int8": lambda: torch_linear(weight, A, threads, codes=codes),
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
