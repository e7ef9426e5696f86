"""Large embedding tables become low-bit rows: Gather(W, ids) = GatherBlockQuantized(codes, ids, scales, zero_points).

ONNX Runtime makes rows of zeros of ids that W does not have, where Gather fails. So ids go through a Gather of as many
zeros as W has rows, which fails as before:

    ids + Gather(ConstantOfShape([rows]), ids)

Each row of W [rows, columns] is rounded in blocks along its columns, so the codes of a table that is also the
transposed weight of a MatMul (tied embeddings) are the same bytes, and stored once.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from ..graph.rewriting import add_array, add_initializer, insert_before, replace, required
from ..graph.weight_form import MICROSOFT
from ..planning.lazy_weight import LazyWeight
from ..planning.plan import Decision
from .base import GraphPass

OPSET = 9
"""The first with ConstantOfShape."""


class QuantizeGather(GraphPass):
    """Rewrite the Gather nodes that a plan takes.

    Args:
        decisions: What becomes of nodes.
    """

    def __init__(self, decisions: list[Decision]) -> None:
        self._decisions = decisions
        self._weights: dict[tuple[object, ...], LazyWeight] = {}
        self._values: dict[tuple[int, str], ir.Value] = {}

    @property
    def weights(self) -> list[LazyWeight]:
        """The tables that were rounded, each once."""
        return list(self._weights.values())

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite; whether anything changed."""
        taken = [d for d in self._decisions if d.taken and d.op_type == "Gather"]
        for decision in taken:
            self._rewrite(model, decision)
            model.graph.opset_imports.setdefault(MICROSOFT, 1)
        return bool(taken)

    def _rewrite(self, model: ir.Model, decision: Decision) -> None:
        node, weight, settings = decision.node, decision.weight, decision.settings
        assert weight is not None
        assert settings is not None
        scheme = settings.weight  # with the type of the output
        if weight.dtype == ir.DataType.FLOAT16:
            scheme = dataclasses.replace(scheme, scale_type="float16")
        elif scheme.scale_type == "float16":
            scheme = dataclasses.replace(scheme, scale_type="half")
        key = (id(weight.tensor), scheme)
        if key not in self._weights:
            self._weights[key] = LazyWeight(f"{weight.value.name}_table", weight, scheme)
        lazy = self._weights[key]
        lazy.readers.append(decision)
        # Zero points are written out even where they are all the same: ONNX Runtime's default for packed uint8 has
        # changed between versions.
        parts = [self._part(model.graph, lazy, part) for part in ("rows", "scales", "zero_points")]
        rows = insert_before(
            node, "GatherBlockQuantized", [parts[0], self._checked(model.graph, node, weight.N), *parts[1:]],
            node.outputs[0],
            domain=MICROSOFT, suffix="",
            attributes={"bits": scheme.bits, "block_size": scheme.block_size, "gather_axis": 0, "quantize_axis": 1},
        )  # fmt: skip
        producer = rows.producer()
        assert producer is not None
        producer.name = node.name
        replace(node, rows)

    def _checked(self, graph: ir.Graph, node: ir.Node, rows: int) -> ir.Value:
        """The ids that a Gather reads, behind nodes that fail where a table of so many rows lacks one."""
        ids = required(node.inputs[1])
        kind = ids.dtype or ir.DataType.INT64
        if ids.dtype is None:
            ids = insert_before(node, "Cast", [ids], None, suffix="_ids", attributes={"to": int(kind)})
        key = (rows, "count")
        if key not in self._values:
            self._values[key] = add_array(graph, f"{node.name}_rows", np.array([rows], np.int64))
        attributes = {"value": ir.tensor(np.zeros(1, kind.numpy()))}
        zeros = insert_before(node, "ConstantOfShape", [self._values[key]], None, suffix="_none", attributes=attributes)
        nothing = insert_before(node, "Gather", [zeros, ids], None, suffix="_bounds")
        checked = insert_before(node, "Add", [ids, nothing], ids, suffix="_checked")
        checked.type = ir.TensorType(kind)
        return checked

    def _part(self, graph: ir.Graph, lazy: LazyWeight, part: str) -> ir.Value:
        key = (id(lazy), part)
        if key not in self._values:
            name = f"{lazy.name}_int{lazy.scheme.bits}_{part}"
            dtype = ir.DataType.UINT8
            if part == "scales":
                dtype = ir.DataType.FLOAT16 if lazy.scheme.scale_type == "float16" else ir.DataType.FLOAT
            self._values[key] = add_initializer(graph, name, lazy.tensor(part, dtype))
        return self._values[key]
