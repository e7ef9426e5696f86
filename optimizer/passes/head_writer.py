"""Heads as ONNX Runtime's attentions read them: columns side by side, rotated by com.microsoft::RotaryEmbedding.

The rotation reads the angles of each token as the model computes them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..graph.appending import Appender
from ..graph.constants import constant_of
from ..graph.matching import is_standard
from ..graph.product_columns import read_product
from ..graph.rewriting import SharedArrays, insert_before, set_names
from ..graph.rotary import Heads, Rotation
from ..graph.weight_form import MICROSOFT
from .merge_products import reordered


class HeadWriter:
    """Writes what is before attentions; the graph is to be put in order when all are there.

    Args:
        graph: The main graph.
        write: For nodes that several attentions share.
    """

    def __init__(self, graph: ir.Graph, write: Appender) -> None:
        self._graph, self._write = graph, write
        self._arrays = SharedArrays(graph)
        self._made: dict[tuple[object, ...], ir.Value] = {}

    def written(self, last: ir.Node, every: Sequence[Heads], batch: ir.Value, same: object) -> list[ir.Value]:
        """Queries, keys and values [batch, sequence, heads * width].

        Args:
            last: The node ahead of which they are needed.
            every: Of them.
            batch: A value whose first axis is the batch.
            same: What attentions of one batch and sequence have in common.
        """
        made: dict[int, ir.Value] = {}
        for source in dict.fromkeys(heads.source for heads in every):
            readers = [heads for heads in every if heads.source is source]
            made.update(zip(map(id, readers), self._of_source(last, source, readers), strict=True))
        return [self._rotated(last, made[id(heads)], heads, batch, same) for heads in every]

    def repeated(self, last: ir.Node, x: ir.Value, heads: Heads, count: int) -> ir.Value:
        """[batch, sequence, count * width] of [batch, sequence, heads * width], each head for its group."""
        if heads.count == count:
            return x
        parts = [x] if heads.count == 1 else self._parts(last, x, [heads.width] * heads.count)
        every = [part for part in parts for _ in range(count // heads.count)]
        repeated = insert_before(last, "Concat", every, x, suffix="_repeated", attributes={"axis": 2})
        lead = x.shape[:2] if x.shape is not None else (None, None)
        repeated.shape = ir.Shape([*lead, count * heads.width])
        return repeated

    def _of_source(self, last: ir.Node, source: ir.Value, readers: list[Heads]) -> list[ir.Value]:
        first = readers[0]
        if source.shape is not None and len(source.shape) == 4:
            turned = self._write.op("Transpose", source, perm=[0, 2, 1, 3]) if first.heads_first else source
            return [self._write.op("Reshape", turned, self._write.ints(0, 0, first.columns.size)) for _ in readers]
        columns = [heads.columns.reshape(-1) for heads in readers]
        every = source.shape[-1] if source.shape is not None else None
        order = np.concatenate(columns)
        in_order = np.array_equal(order, np.arange(every if isinstance(every, int) else 0))
        if in_order or self._reorder(source, order):
            if len(readers) == 1:
                return [source]
            return self._parts(last, source, [part.size for part in columns])
        return [
            self._write.op("Gather", source, self._arrays.add("columns", part), axis=2) for part in columns
        ]  # fmt: skip

    def _parts(self, last: ir.Node, x: ir.Value, sizes: Sequence[int]) -> list[ir.Value]:
        """Columns [batch, sequence, so many] of x, side by side."""
        node = ir.node("Split", [x, self._write.ints(*sizes)], attributes={"axis": 2}, num_outputs=len(sizes))
        name = f"{x.name}_split"
        set_names(node, self._graph, name, *(f"{name}_{index}" for index in range(len(sizes))))
        self._graph.insert_before(last, node)
        for output in node.outputs:
            output.type = x.type
        return list(node.outputs)

    def _reorder(self, source: ir.Value, order: np.ndarray) -> bool:
        """Put the columns of a product in another order, where nobody else reads them; whether that was done."""
        maker = source.producer()
        node = maker.inputs[0].producer() if is_standard(maker, "Add") and maker.inputs[0] is not None else maker
        if is_standard(maker, "Add") and maker.inputs[1] is not None and constant_of(maker.inputs[0]) is not None:
            node = maker.inputs[1].producer()
        product = read_product(node) if node is not None else None
        readers = {reader for reader, _ in source.uses() if reader.op_type != "Shape"}
        if product is None or product.result is not source or len(readers) != 1 or source.is_graph_output():
            return False
        if not np.array_equal(np.sort(order), np.arange(product.columns)):
            return False
        reordered(self._graph, product, order)
        return True

    def _rotated(self, last: ir.Node, x: ir.Value, heads: Heads, batch: ir.Value, same: object) -> ir.Value:
        rotation = heads.rotation
        if rotation is None:
            return x
        tables = [self._table(table, rotation) for table in (rotation.cos, rotation.sin)]
        attributes = {"num_heads": heads.count, "interleaved": int(rotation.interleaved)}
        if rotation.width < heads.width:
            attributes["rotary_embedding_dim"] = rotation.width
        rows = self._arrays.add("first_row", np.zeros(1, np.int64)) if rotation.shared else None
        inputs = [x, rows or self._rows(batch, tables[0], same), *tables]
        return insert_before(
            last, "RotaryEmbedding", inputs, x, domain=MICROSOFT, suffix="_rotary", attributes=attributes
        )

    def _table(self, table: ir.Value, rotation: Rotation) -> ir.Value:
        """[tokens, rotated / 2] of the angles of each token."""
        key = ("table", table, rotation.doubled, rotation.interleaved)
        if key not in self._made:
            half = table
            if rotation.doubled:
                begin, end, step = (0, rotation.width, 2) if rotation.interleaved else (0, rotation.width // 2, 1)
                half = self._write.op("Slice", table, *map(self._write.ints, (begin, end, -1, step)))
            self._made[key] = self._write.op("Reshape", half, self._write.ints(-1, rotation.width // 2))
        return self._made[key]

    def _rows(self, batch: ir.Value, table: ir.Value, same: object) -> ir.Value:
        """[batch, sequence]: the row of the table that is a token's."""
        key = ("rows", table, same)
        if key not in self._made:
            every = self._write.range(self._first(table))
            sizes = self._write.op("Concat", self._first(batch), self._write.ints(-1), axis=0)
            self._made[key] = self._write.op("Reshape", every, sizes)
        return self._made[key]

    def _first(self, value: ir.Value) -> ir.Value:
        """int64 [1]: the length of the first axis."""
        sizes = self._write.op("Shape", value, dtype=ir.DataType.INT64)
        return self._write.op("Slice", sizes, self._write.ints(0), self._write.ints(1))
