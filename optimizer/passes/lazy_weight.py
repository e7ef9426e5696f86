"""A weight that is quantized when it is written, so that no more than one is in memory."""

from __future__ import annotations

import threading

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnxpress.custom_ops import _kernels

from ..quantization.rtn import QuantizedWeight, WeightError, quantize_rtn
from ..quantization.schemes import WeightScheme
from .plan import Weight, release

_SCALE_TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}


class LazyWeight:
    """One constant rounded by one scheme; `tensor` gives its parts, which share one computation.

    Attributes:
        name: Name of the constant.
        weight: The constant.
        scheme: How it is rounded.
        factor: What scales are multiplied by: Gemm's alpha.
        nodes: Names of the nodes that read it.
        error: What rounding cost, once it was done.
    """

    def __init__(self, name: str, weight: Weight, scheme: WeightScheme, factor: float = 1.0) -> None:
        self.name = name
        self.weight = weight
        self.scheme = scheme
        self.factor = factor
        self.nodes: list[str] = []
        self.error: WeightError | None = None
        self._lock = threading.Lock()
        self._pending: set[str] = set()
        self._result: QuantizedWeight | None = None

    @property
    def blocks(self) -> int:
        """Blocks along K."""
        return -(-self.weight.K // self.scheme.block_size)

    def tensor(self, part: str, dtype: ir.DataType | None = None) -> ir.LazyTensor:
        """A part as a lazy tensor.

        Args:
            part: "packed" uint8 [N, n_blocks, bytes], "rows" uint8 [N, K * bits / 8], "scales" [N, n_blocks],
                "zero_points" uint8 [N, bytes]; for blocked DequantizeLinear "codes" [K, N], "scales_kn" and
                "zero_points_kn" [n_blocks, N].
            dtype: Type of scales ("scales", "scales_kn") or of codes ("codes", "zero_points_kn").
        """
        K, N, bits = self.weight.K, self.weight.N, self.scheme.bits
        blob = self.scheme.block_size * bits // 8
        shapes: dict[str, tuple[int, ...]] = {
            "packed": (N, self.blocks, blob),
            "rows": (N, self.blocks * blob),
            "scales": (N, self.blocks),
            "zero_points": (
                N,
                _kernels.pack_zero_points(np.zeros((1, self.blocks), np.uint8), bits).shape[1],
            ),
            "codes": (K, N),
            "scales_kn": (self.blocks, N),
            "zero_points_kn": (self.blocks, N),
        }
        kind = dtype or (_SCALE_TYPES[self.scheme.scale_type] if part == "scales" else ir.DataType.UINT8)
        self._pending.add(part)

        def evaluate() -> ir.TensorProtocol:
            return ir.Tensor(self._part(part, kind), dtype=kind)

        return ir.LazyTensor(evaluate, kind, ir.Shape(shapes[part]), name=f"{self.name}_{part}")

    def _part(self, part: str, dtype: ir.DataType) -> np.ndarray:
        """Compute once for all parts that are still to be asked for, and forget the codes after the last."""
        with self._lock:
            result = self._result or self._quantize()
            self._pending.discard(part)
            self._result = result if self._pending else None
        if part == "packed":
            return result.packed
        if part == "rows":
            return result.packed.reshape(result.packed.shape[0], -1)
        if part == "zero_points":
            return _kernels.pack_zero_points(result.zero_points, self.scheme.bits)
        if part in ("scales", "scales_kn"):
            scales = result.scales * np.float32(self.factor)
            return np.ascontiguousarray(scales.T if part == "scales_kn" else scales).astype(dtype.numpy())
        return self._standard(result, part, dtype)

    def _standard(self, result: QuantizedWeight, part: str, dtype: ir.DataType) -> np.ndarray:
        """Codes or zero points in [K, N] order as an ONNX integer type; signed types are centred on zero."""
        bits = self.scheme.bits
        if part == "codes":
            codes = _kernels.unpack_codes(result.packed, bits, self.scheme.block_size, self.weight.K)
        else:
            codes = result.zero_points
        codes = np.ascontiguousarray(codes.T)
        if dtype in (ir.DataType.INT4, ir.DataType.INT8):
            codes -= np.uint8(2 ** (bits - 1))  # wraps around to two's complement
            codes = codes.view(np.int8)
        kinds = {ir.DataType.INT4: ml_dtypes.int4, ir.DataType.UINT4: ml_dtypes.uint4}
        return codes.astype(kinds[dtype]) if dtype in kinds else codes

    def _quantize(self) -> QuantizedWeight:
        array = np.ascontiguousarray(self.weight.tensor.numpy())
        result = quantize_rtn(array, self.scheme, self.weight.transposed)
        del array
        release(self.weight.tensor)
        self.error = result.error
        return result
