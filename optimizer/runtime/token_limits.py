"""How large the numbers of integer inputs may be, by the tables that they index."""

from __future__ import annotations

import onnx_ir as ir

_INDEXING = ("Gather", "GatherElements", "GatherBlockQuantized", "EmbedLayerNormalization")
_MOVING = frozenset({
    "Cast", "Concat", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose",
    "Unsqueeze",
})  # fmt: skip
_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
_TABLES = {0: 2, 1: 3}
"""Of EmbedLayerNormalization: token numbers and segments, each with its table."""


def token_limits(model: ir.Model) -> dict[str, int]:
    """By input, the least number that is no index of some table which it reaches by way of what only moves numbers."""
    found = {
        value.name or "": _limit(value) for value in model.graph.inputs if value.dtype is None or not _float(value)
    }
    return {name: limit for name, limit in found.items() if limit is not None}


def _float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _limit(value: ir.Value) -> int | None:
    sizes: list[int] = []
    seen, stack = {value}, [value]
    while stack:
        for node, index in stack.pop().uses():
            size = _indexed(node, index)
            if size is not None:
                sizes.append(size)
            if node.op_type in _MOVING:
                fresh = [output for output in node.outputs if output not in seen]
                seen.update(fresh)
                stack.extend(fresh)
    return min(sizes, default=None)


def _indexed(node: ir.Node, index: int) -> int | None:
    """Rows of the table that an input of a node indexes."""
    if node.op_type not in _INDEXING:
        return None
    is_gather = node.op_type != "EmbedLayerNormalization"
    table = 0 if is_gather and index == 1 else None if is_gather else _TABLES.get(index)
    value = node.inputs[table] if table is not None and table < len(node.inputs) else None
    name = "gather_axis" if node.op_type == "GatherBlockQuantized" else "axis"
    axis = node.attributes.get_int(name, 0) if is_gather else 0
    shape = [] if value is None else _shape(value)
    size = shape[axis] if -len(shape) <= axis < len(shape) else None
    return size if isinstance(size, int) else None


def _shape(value: ir.Value) -> list[int | ir.SymbolicDim]:
    """What is known of it; of nothing but zeros, which guard a table of few bits, the constant that it is made by."""
    producer = value.producer()
    if value.shape is None and producer is not None and producer.op_type == "ConstantOfShape":
        sizes = producer.inputs[0].const_value if producer.inputs[0] is not None else None
        return [] if sizes is None else [int(size) for size in sizes.numpy()]
    return [] if value.shape is None else list(value.shape)
