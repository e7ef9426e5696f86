"""A weight that is quantized when it is written, so that no more than one is in memory."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxpress.custom_ops import _kernels, reference

from ..graph.constants import release
from ..quantization.formats import SCALE_TYPES
from ..quantization.quantized_weight import QuantizedWeight, WeightError, centred, decibels
from ..quantization.round_weight import round_weight
from ..quantization.schemes import WeightScheme
from .plan import Decision, Weight
from .report import WeightReport

_NARROW = {
    ir.DataType.INT4: ml_dtypes.int4,
    ir.DataType.UINT4: ml_dtypes.uint4,
    ir.DataType.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn,
    ir.DataType.FLOAT8E5M2: ml_dtypes.float8_e5m2,
    ir.DataType.FLOAT4E2M1: ml_dtypes.float4_e2m1fn,
}


class LazyWeight:
    """One constant rounded by one scheme; `tensor` gives its parts, which share one computation.

    Attributes:
        name: Name of the constant.
        weight: The constant.
        scheme: How it is rounded.
        factor: Gemm's alpha: of the scales, or of the weight where scales cannot be any number.
        convolution: Whether its rows are the output channels of a Conv.
        readers: The nodes that read it.
        error: What rounding cost, once it was done.
        method: How its codes are found.
        stored: Bytes of the parts that were asked for.
    """

    def __init__(
        self, name: str, weight: Weight, scheme: WeightScheme, factor: float = 1.0, *, convolution: bool = False
    ) -> None:
        self.name = name
        self.weight = weight
        self.scheme = scheme
        self.factor = factor
        self.convolution = convolution
        self.readers: list[Decision] = []
        self.error: WeightError | None = None
        self.method = "rtn"
        self.stored = 0
        self._lock = threading.Lock()
        self._pending: set[str] = set()
        self._result: QuantizedWeight | None = None
        self._made: Callable[[], QuantizedWeight] = self._round

    @property
    def blocks(self) -> int:
        """Blocks along K."""
        return self.scheme.blocks(self.weight.K)

    @property
    def identity(self) -> tuple[object, ...]:
        """What tells it from other weights of the model, and of a copy of it."""
        return self.name, self.scheme, self.factor, self.weight.transposed, self.convolution

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes that read it."""
        return tuple(reader.node_name for reader in self.readers)

    def rows(self) -> npt.NDArray[np.floating]:
        """What is rounded: the constant, with output channels [N, K] first where it is stored so, else last [K, N]."""
        array = np.ascontiguousarray(self.weight.tensor.numpy())
        array = array.reshape(self.weight.N, -1) if self.weight.transposed else array
        if self.factor != 1 and not self.scheme.takes_factors:
            array = array.astype(np.float32) * np.float32(self.factor)
        return array

    def report(self) -> WeightReport | None:
        """What rounding cost, once it was done."""
        if self.error is None:
            return None
        return WeightReport(
            self.name, self.nodes, self.scheme.name, self.weight.tensor.size,
            self.error.sqnr, self.error.gain, self.method, self.stored,
        )  # fmt: skip

    def take(self, made: Callable[[], QuantizedWeight], method: str) -> None:
        """Say what gives the rounded weight in place of rounding it by itself, and by which method."""
        self._made, self.method = made, method

    def tensor(self, part: str, dtype: ir.DataType = ir.DataType.UINT8) -> ir.LazyTensor:
        """A part as a lazy tensor.

        Args:
            part: "packed" uint8 [N, n_blocks, bytes], "rows" uint8 [N, K * bits / 8], "scales" [N, n_blocks],
                "zero_points" uint8 [N, bytes]; for DequantizeLinear "codes" [K, N], "codes_nk" [N, K] or
                "codes_shaped" in the shape of the weight, "scales_kn" and "zero_points_kn" [n_blocks, N] in blocks,
                "scales_n" [N] or "scale" [] without.
            dtype: Type of scales ("scales" and others; UINT8 for exponents) or of codes ("codes" and others,
                "zero_points_kn").
        """
        K, N, bits = self.weight.K, self.weight.N, self.scheme.bits
        blob = reference.packed_bytes(self.scheme.codes_per_block(K), bits)
        shapes: dict[str, tuple[int, ...]] = {
            "packed": (N, self.blocks, blob),
            "rows": (N, self.blocks * blob),
            "scales": (N, self.blocks),
            "zero_points": (
                N,
                _kernels.pack_zero_points(np.zeros((1, self.blocks), np.uint8), bits).shape[1],
            ),
            "codes": (K, N),
            "codes_nk": (N, K),
            "codes_shaped": tuple(self.weight.tensor.shape.numpy()),
            "scales_kn": (self.blocks, N),
            "zero_points_kn": (self.blocks, N),
            "scales_n": (N,),
            "scale": (),
        }
        self._pending.add(part)

        def evaluate() -> ir.TensorProtocol:
            return ir.Tensor(self._part(part, dtype), dtype=dtype)

        tensor = ir.LazyTensor(evaluate, dtype, ir.Shape(shapes[part]), name=f"{self.name}_{part}")
        self.stored += tensor.nbytes
        return tensor

    def _part(self, part: str, dtype: ir.DataType) -> np.ndarray:
        """Compute once for all parts that are still to be asked for, and forget the codes after the last."""
        with self._lock:
            result = self._result or self._make()
            self._pending.discard(part)
            self._result = result if self._pending else None
        if part == "packed":
            return result.packed
        if part == "rows":
            return result.packed.reshape(result.packed.shape[0], -1)
        if part == "zero_points":
            return _kernels.pack_zero_points(result.zero_points, self.scheme.bits)
        if part in ("scales", "scales_kn", "scales_n", "scale"):
            return self._stored(result.scales, part, dtype)
        return self._standard(result, part, dtype)

    def _stored(self, scales: np.ndarray, part: str, dtype: ir.DataType) -> np.ndarray:
        """Scales in the order and type of a part."""
        scales = scales * np.float32(self.factor) if self.scheme.takes_factors else scales
        if part == "scales_kn":
            scales = np.ascontiguousarray(scales.T)
        elif part != "scales":
            scales = scales[:, 0] if part == "scales_n" else scales[0, 0]
        if dtype == ir.DataType.UINT8:
            return SCALE_TYPES["e8m0"].store(scales)
        return np.asarray(scales).astype(dtype.numpy())

    def _standard(self, result: QuantizedWeight, part: str, dtype: ir.DataType) -> np.ndarray:
        """Codes or zero points in the order of a part as an ONNX type; signed integers are centred on zero."""
        if part == "zero_points_kn":
            codes = np.ascontiguousarray(result.zero_points.T)
        else:
            codes = result.code_rows()
            if part == "codes":
                codes = np.ascontiguousarray(codes.T)
            elif part == "codes_shaped":
                codes = codes.reshape(self.weight.tensor.shape.numpy())
        if dtype in (ir.DataType.INT4, ir.DataType.INT8):
            codes = centred(codes, self.scheme)
        kind = _NARROW.get(dtype)
        if kind is None:
            return codes
        return codes.astype(kind) if self.scheme.integer else codes.view(kind)

    def _make(self) -> QuantizedWeight:
        result = self._made()
        release(self.weight.tensor)
        self.error = result.error
        return result

    def _round(self) -> QuantizedWeight:
        axis = 0 if self.weight.transposed else 1
        return round_weight(self.rows(), axis, self.scheme, convolution=self.convolution)


def reports(weights: Iterable[LazyWeight]) -> tuple[WeightReport, ...]:
    """Of those that were rounded so far; they are when the model is written."""
    return tuple(report for weight in weights if (report := weight.report()) is not None)


def gain(weights: Iterable[LazyWeight]) -> float:
    """By how much searches lowered what they minimise, over all weights that were rounded, in dB."""
    errors = [weight.error for weight in weights if weight.error is not None]
    return decibels(math.fsum(e.baseline for e in errors), math.fsum(e.cost for e in errors)) if errors else 0.0
