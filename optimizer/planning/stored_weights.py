"""Rounded weights as initializers, each made once for all nodes that share it."""

from __future__ import annotations

import onnx_ir as ir

from ..graph.rewriting import add_initializer, insert_cast, required
from ..graph.weight_form import WeightForm
from ..quantization.schemes import WeightScheme, int8_weights
from .lazy_weight import LazyWeight
from .plan import Decision


class StoredWeights:
    """What the nodes that a pass rewrites read in place of their weights."""

    def __init__(self) -> None:
        self._weights: dict[tuple[object, ...], LazyWeight] = {}
        self._values: dict[tuple[object, ...], ir.Value] = {}

    @property
    def weights(self) -> list[LazyWeight]:
        """The weights that are rounded, each once."""
        return list(self._weights.values())

    def weight(self, decision: Decision, scheme: WeightScheme, factor: float = 1.0) -> LazyWeight:
        """The rounded weight of a node; `factor` as in `LazyWeight`."""
        weight = required(decision.weight)
        convolution = decision.op_type == "Conv"
        key = (id(weight.tensor), weight.transposed, scheme, factor, convolution)
        if key not in self._weights:
            name = weight.value.name or "weight"
            self._weights[key] = LazyWeight(name, weight, scheme, factor, convolution=convolution)
        self._weights[key].readers.append(decision)
        return self._weights[key]

    def part(self, graph: ir.Graph, lazy: LazyWeight, part: str, dtype: ir.DataType, suffix: str) -> ir.Value:
        """The initializer of a part."""
        key = (id(graph), id(lazy), part)
        if key not in self._values:
            name = f"{lazy.name}_{lazy.scheme.name}_{suffix}"
            self._values[key] = add_initializer(graph, name, lazy.tensor(part, dtype))
        return self._values[key]

    def int8(
        self, graph: ir.Graph, decision: Decision, factor: float = 1.0, *, search: bool, reduce_range: bool
    ) -> tuple[ir.Value, ir.Value]:
        """Codes int8 [K, N] and scales float32 [N] of a weight beside activations of 8 bits.

        Args:
            graph: The outermost, which those inside see.
            decision: On the node that reads it.
            factor: As in `LazyWeight`.
            search: Search the best scale of each column, where the node's settings do too.
            reduce_range: Codes of 7 bits.
        """
        search = search and required(decision.settings).weight.search
        weight = self.weight(decision, int8_weights(search=search, reduce_range=reduce_range), factor)
        codes = self.part(graph, weight, "codes", ir.DataType.INT8, "codes")
        return codes, self.part(graph, weight, "scales_n", ir.DataType.FLOAT, "scales")

    def scales(self, graph: ir.Graph, node: ir.Node, lazy: LazyWeight, form: WeightForm, part: str) -> ir.Value:
        """Scales as the form of a node takes them, else cast to the type it computes in: ONNX Runtime folds that."""
        computed = ir.DataType.FLOAT if form.widened else lazy.weight.dtype
        scales = self.part(graph, lazy, part, form.scales, "scales")
        if form.scales == computed or form.ours:
            return scales
        return insert_cast(node, scales, computed, "_scales")
