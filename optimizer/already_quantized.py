"""Models that are quantized, sparse or compiled already, by us or by others, and that no scheme takes again.

A second conversion would round what was rounded, or take apart what runs fast: functions of our domain are inlined when
an opset is raised. So the question is asked once for all schemes, of the model as it was read.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnxpress.custom_ops import functions

from .errors import OnnxpressError
from .passes.rewriting import result_name

_OPERATORS = frozenset({
    "BlockSparseMatMul", "ConvInteger", "DequantizeBFP", "DequantizeMiniFloat", "DequantizeWithOrder",
    "DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "EPContext", "GatherBlockQuantized",
    "GemmFloat8", "MatMulBnb4", "MatMulFpQ4", "MatMulInteger", "MatMulInteger16", "MatMulIntegerToFloat",
    "MatMulMiniFloat", "MatMulNBits", "QAttention", "QEmbedLayerNormalization", "QGemm", "QMoE", "RoundMiniFloat",
})  # fmt: skip
_FAMILIES = ("QLinear", "QOrdered")  # QLinearConv, QLinearMatMul, QLinearAdd, ...
_DOMAINS = frozenset({"", "com.microsoft", "com.ms.internal.nhwc", functions.DOMAIN})
"""Where these names mean that; others' operators may be called anything, and compute in float."""


def check_not_quantized(model: ir.Model, source: str) -> None:
    """Refuse a model that was converted before.

    Args:
        model: As it was read.
        source: What to call it.

    Raises:
        OnnxpressError: It names the first node that shows it, and what to do.
    """
    node = next(quantized_nodes(model), None)
    if node is None:
        return
    raise OnnxpressError(f"{source}: {evidence(node)}; convert the float model that it was made of")


def evidence(node: ir.Node) -> str:
    """That a model is quantized or compiled, as one of its `quantized_nodes` shows."""
    name = node.name or result_name(node) or ""
    done = "compiled" if node.op_type == "EPContext" else "quantized"
    return f"the model is already {done}, as node '{name}' ({_form(node)}) shows"


def quantized_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """The nodes that compute on codes, decode weights or round activations.

    Graphs inside nodes count, and so do bodies of functions that are called, but for those of our own nodes. A
    DequantizeLinear of what the model is given, such as the bytes of an image, is no sign of anything.
    """
    bodies: list[ir.Graph | ir.Function] = [model.graph]
    called: set[ir.OperatorIdentifier] = set()
    for body in bodies:  # which grow
        for node in body.all_nodes():
            key = node.op_identifier()
            if key in model.functions and node.domain != functions.DOMAIN:  # its body says it, not its name
                if key not in called:
                    called.add(key)
                    bodies.append(model.functions[key])
            elif _is_quantized(node, model.graph):
                yield node


def _is_quantized(node: ir.Node, graph: ir.Graph) -> bool:
    if node.domain not in _DOMAINS:
        return False
    if node.op_type == "DequantizeLinear":
        return not _decodes_input(node, graph)
    return node.op_type in _OPERATORS or node.op_type.startswith(_FAMILIES)


def _decodes_input(node: ir.Node, graph: ir.Graph) -> bool:
    """Whether codes are an input of the model, perhaps moved; else they are constant or of a QuantizeLinear."""
    value, seen = _first(node), set[ir.Value]()
    while value is not None and value not in seen and not value.is_initializer():
        seen.add(value)
        producer = value.producer()
        if producer is None:
            return value in graph.inputs
        value = _first(producer) if producer.op_type != "QuantizeLinear" else None
    return False


def _first(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if node.inputs else None


def _form(node: ir.Node) -> str:
    operator = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
    codes = _first(node)
    if node.op_type == "DequantizeLinear" and codes is not None and codes.dtype is not None:
        return f"{operator} of {codes.dtype.name}"
    return operator
