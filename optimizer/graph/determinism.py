"""Which nodes make the same of the same: what may be computed once, or once for all."""

from __future__ import annotations

import onnx_ir as ir

from .matching import input_of, is_standard

_DRAWS = (
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
)  # fmt: skip


def is_deterministic(node: ir.Node) -> bool:
    """Whether a node makes the same of the same in every run: standard, no graphs inside, and no drawing of numbers."""
    if node.domain not in ("", "ai.onnx") or is_standard(node, *_DRAWS):
        return False
    if is_standard(node, "Dropout") and not _is_of_inference(node):
        return False
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return not any(attribute.type in graphs for attribute in node.attributes.values())


def _is_of_inference(node: ir.Node) -> bool:
    training = input_of(node, 2)
    if training is None:
        return True
    tensor = None if training.is_graph_input() else ir.convenience.get_const_tensor(training)
    return tensor is not None and not tensor.numpy().any()
