"""A matrix that is rounded to int8 when it is written, one scale a column."""

from __future__ import annotations

import threading

import numpy as np
import onnx_ir as ir

from ..graph.constants import release
from ..quantization.affine import QuantizedTensor, quantize_weight
from ..quantization.quantized_weight import decibels
from .plan import Weight
from .report import WeightReport


class LazyInt8:
    """W[:, n] = scales[n] codes[:, n]; `codes` and `scales` share one computation.

    Attributes:
        name: Name of the constant.
        weight: The constant.
        factor: What scales are multiplied by: Gemm's alpha.
        nodes: Names of the nodes that read it.
    """

    def __init__(self, name: str, weight: Weight, *, factor: float = 1.0, reduce_range: bool, search: bool) -> None:
        self.name = name
        self.weight = weight
        self.factor = factor
        self.nodes: list[str] = []
        self._reduce_range = reduce_range
        self._search = search
        self._lock = threading.Lock()
        self._pending: set[str] = set()
        self._result: QuantizedTensor | None = None
        self._report: WeightReport | None = None
        self._costs = (0.0, 0.0)

    def codes(self) -> ir.LazyTensor:
        """int8 [K, N]."""
        return self._tensor("codes", ir.DataType.INT8, [self.weight.K, self.weight.N])

    def scales(self) -> ir.LazyTensor:
        """float32 [N]."""
        return self._tensor("scales", ir.DataType.FLOAT, [self.weight.N])

    def report(self) -> WeightReport | None:
        """What rounding cost, once it was done."""
        return self._report

    @property
    def costs(self) -> tuple[float, float]:
        """What the search for scales minimises, and that of plain min/max rounding; zeros before it was done."""
        return self._costs

    def _tensor(self, part: str, dtype: ir.DataType, shape: list[int]) -> ir.LazyTensor:
        self._pending.add(part)

        def evaluate() -> ir.TensorProtocol:
            return ir.Tensor(self._part(part), dtype=dtype)

        return ir.LazyTensor(evaluate, dtype, ir.Shape(shape), name=f"{self.name}_{part}")

    def _part(self, part: str) -> np.ndarray:
        with self._lock:
            result = self._result or self._quantize()
            self._pending.discard(part)
            self._result = result if self._pending else None
        return result.codes if part == "codes" else result.scale * np.float32(self.factor)

    def _quantize(self) -> QuantizedTensor:
        array = self.weight.tensor.numpy().astype(np.float32)
        if self.weight.transposed:
            array = np.ascontiguousarray(array.T)
        result = quantize_weight(array, 1, reduce_range=self._reduce_range, search=self._search)
        self._costs = result.cost, result.baseline
        sqnr, gain = decibels(result.energy, result.error), decibels(result.baseline, result.cost)
        self._report = WeightReport(
            self.name, tuple(self.nodes), "int8", result.size, sqnr, gain, result.method, result.stored
        )
        release(self.weight.tensor)
        return result
