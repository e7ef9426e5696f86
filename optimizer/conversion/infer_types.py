"""Types of tensors that a model does not state, as ONNX infers them; clean-up leaves out results of loops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import onnx_ir as ir

from ..model_io.names import values_of
from .checker import bare

if TYPE_CHECKING:
    import onnx


def infer_types(model: ir.Model) -> None:
    """Give the values of the main graph, and of those inside its nodes, the types that nothing states, in place.

    Where inference fails, and for the outputs of operators that ONNX does not know, none is given.
    """
    import onnx

    untyped = [value for value in values_of(model.graph) if value.type is None]
    if not untyped:
        return
    try:
        inferred = onnx.shape_inference.infer_shapes(bare(model).proto)
    except Exception:  # whatever inference makes of nodes that are wrong
        return
    kinds = list(_kinds(inferred.graph))
    count = Counter(name for name, _ in kinds)
    known = {name: kind for name, kind in kinds if count[name] == 1}
    for value in untyped:
        if (kind := known.get(value.name or "")) is not None:
            value.type = ir.TensorType(kind)


def _kinds(graph: onnx.GraphProto) -> Iterator[tuple[str, ir.DataType]]:
    """Names and types of the tensors of a graph and those inside its nodes."""
    for info in (*graph.input, *graph.value_info, *graph.output):
        if element := info.type.tensor_type.elem_type:
            yield info.name, ir.DataType(element)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _kinds(inner)
