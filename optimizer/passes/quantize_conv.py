"""Conv and ConvTranspose with a constant weight read it from codes of small floats.

    Conv(x, W, b) = Conv(x, DequantizeMiniFloat(codes, scales), b)

A weight is rows: all that belongs to an index of its first axis, an output channel of Conv, an input channel of
ConvTranspose, one of its group. A row has a scale, or one in blocks along it. The form "qdq" has DequantizeLinear in
place of DequantizeMiniFloat: by axis 0, or of the rows in blocks, then a Reshape.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graph.rewriting import add_array, insert_before, required
from ..graph.weight_form import WeightForm
from ..planning.lazy_weight import LazyWeight
from ..planning.plan import Decision
from ..planning.stored_weights import StoredWeights
from .base import GraphPass
from .decode_minifloat import decode_minifloat


class QuantizeConv(GraphPass):
    """Rewrite the convolutions that a plan takes.

    Cases: groups and depthwise; a shared weight (rounded and decoded once); float16 (decoded, then cast).

    Args:
        decisions: What becomes of nodes.
    """

    def __init__(self, decisions: list[Decision]) -> None:
        self._decisions = decisions
        self._stored = StoredWeights()
        self._decoded: dict[tuple[object, ...], ir.Value] = {}

    @property
    def weights(self) -> list[LazyWeight]:
        """The weights that are rounded, each once."""
        return self._stored.weights

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite; whether anything changed."""
        taken = [d for d in self._decisions if d.taken and d.op_type in ("Conv", "ConvTranspose")]
        for decision in taken:
            node, form = decision.node, required(decision.form)
            lazy = self._stored.weight(decision, form.scheme)
            key = (id(node.graph), id(lazy))
            if key not in self._decoded:
                standard = form.op_type == "DequantizeLinear"
                decode = self._standard if standard else self._ours
                self._decoded[key] = decode(model, node, lazy, form)
                model.ir_version = max(model.ir_version, form.ir_version)
            node.replace_input_with(1, self._decoded[key])
        return bool(taken)

    def _ours(self, model: ir.Model, node: ir.Node, lazy: LazyWeight, form: WeightForm) -> ir.Value:
        codes = self._stored.part(model.graph, lazy, "packed", ir.DataType.UINT8, "codes")
        scales = self._stored.scales(model.graph, node, lazy, form, "scales")
        return decode_minifloat(
            model, node, codes, scales, format=form.scheme.format, shape=lazy.weight.tensor.shape.numpy(),
            block_size=form.scheme.block_size, dtype=lazy.weight.dtype,
        )  # fmt: skip

    def _standard(self, model: ir.Model, node: ir.Node, lazy: LazyWeight, form: WeightForm) -> ir.Value:
        graph, scheme, shape = model.graph, form.scheme, list(lazy.weight.tensor.shape.numpy())
        blocks = scheme.block_size != 0
        codes = self._stored.part(graph, lazy, "codes_nk" if blocks else "codes_shaped", form.codes, "codes")
        part = "scales" if blocks else "scales_n" if scheme.per_channel else "scale"
        scales = self._stored.scales(graph, node, lazy, form, part)
        attributes: dict[str, int | str | list[int]] = (
            {"axis": 1, "block_size": scheme.block_size} if blocks else {"axis": 0}
        )
        weight = insert_before(node, "DequantizeLinear", [codes, scales], None, suffix="_weight", attributes=attributes)
        weight.type, weight.shape = ir.TensorType(lazy.weight.dtype), codes.shape
        if blocks:
            wanted = add_array(graph, f"{lazy.name}_shape", np.array(shape, np.int64))
            weight = insert_before(node, "Reshape", [weight, wanted], None, suffix="_weight_shaped")
            weight.type, weight.shape = ir.TensorType(lazy.weight.dtype), ir.Shape(shape)
        return weight
