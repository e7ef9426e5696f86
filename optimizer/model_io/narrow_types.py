"""Types of few bits that came late to ONNX, and models that use them before they were there."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from ..errors import OnnxpressError

_FLOAT8 = (
    ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E4M3FNUZ, ir.DataType.FLOAT8E5M2, ir.DataType.FLOAT8E5M2FNUZ,
)  # fmt: skip
_SINCE = {
    **dict.fromkeys(_FLOAT8, (19, 9)),
    **dict.fromkeys((ir.DataType.INT4, ir.DataType.UINT4), (21, 10)),
    ir.DataType.FLOAT4E2M1: (23, 11),
    ir.DataType.FLOAT8E8M0: (24, 12),
}
"""The first opset with operators for a type, and the first version of the file format that has it."""


def check_narrow_types(model: ir.Model, source: str) -> None:
    """Refuse types that the opset or the version of the format of a model does not know.

    Args:
        model: As it was read.
        source: What to call it.

    Raises:
        OnnxpressError: It names the tensor, or the node, and what would know the type.
    """
    opset = model.opset_imports.get("", 0)
    for value in _values(model):
        known = _SINCE.get(value.dtype) if value.dtype is not None else None
        if known is None or value.dtype is None:
            continue
        name = value.dtype.name
        if model.ir_version < known[1]:
            raise OnnxpressError(
                f"{source}: tensor '{value.name}' is of {name}, which IR version {model.ir_version} does not know; "
                f"export the model with IR version {known[1]} or newer"
            )
        for node in (*([producer] if (producer := value.producer()) else []), *(use.node for use in value.uses())):
            if node.domain in ("", "ai.onnx") and opset < known[0]:
                raise OnnxpressError(
                    f"{source}: node '{node.name}' ({node.op_type}) uses {name}, which opset {opset} does not know; "
                    f"export the model with opset {known[0]} or newer"
                )


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """Inputs, constants and results of all nodes, those of graphs inside them as well."""
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph.all_nodes():
        for value in node.inputs:
            if value is not None and value.is_initializer():
                yield value
        yield from node.outputs
