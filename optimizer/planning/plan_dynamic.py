"""Which products compute on codes of 8 bits whose activations are rounded as they come, and why the others do not."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import onnx_ir as ir

from ..graph.constants import constant_of
from ..graph.rewriting import settings_of
from ..quantization.rtn import is_finite
from ..settings.node_settings import Kept
from ..settings.recipe import Recipe
from .plan import Decision, Weight, has_weight, nested_nodes, plan

MICROSOFT = "com.microsoft"


def plan_dynamic(model: ir.Model, recipe: Recipe) -> list[Decision]:
    """Decide on every node that has, or could have, a weight; embedding tables are only read, and stay in float."""
    return [_for_dynamic(decision) for decision in plan(model, recipe, "int8-dynamic does") if has_weight(decision)]


def _for_dynamic(decision: Decision) -> Decision:
    if decision.weight is None or decision.weight.dtype == ir.DataType.FLOAT:
        return decision
    return decision.but_left("computes on float16; int8-dynamic rounds float32")


def plan_attention(model: ir.Model, recipe: Recipe, fused: Collection[ir.Node] = ()) -> list[Decision]:
    """Decide on every com.microsoft::Attention.

    Args:
        model: The model.
        recipe: What is asked for.
        fused: Nodes that `FuseAttention` made, on whose products the recipe was asked before.

    Returns:
        One decision a node, in the order of the graph.
    """
    return [
        _decide(node, path, recipe, fused)
        for path, node in nested_nodes(model.graph, "")
        if node.op_type == "Attention" and node.domain == MICROSOFT
    ]


def _decide(node: ir.Node, path: str, recipe: Recipe, fused: Collection[ir.Node]) -> Decision:
    weight = _weight(node)
    if isinstance(weight, str):
        return Decision(node, path, False, weight)
    if node in fused:
        recipe = dataclasses.replace(recipe, include=(), exclude=(), overrides=())
    elif not is_finite(weight.tensor.numpy()):
        return Decision(node, path, False, "the weight holds NaN or infinity", weight.tensor.size)
    settings = settings_of(recipe, node, path)
    if isinstance(settings, Kept):
        return Decision(node, path, False, settings, weight.tensor.size)
    return Decision(node, path, True, "", weight.tensor.size, weight, settings, scheme="int8")


def _weight(node: ir.Node) -> Weight | str:
    """The merged weight of an Attention that QAttention can compute, or why it cannot."""
    value = _input(node, 1)
    tensor = constant_of(value)
    if value is None or tensor is None:
        return "no constant weight"
    if tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2:
        return "the weight is no matrix of float32"
    if _input(node, 2) is None:
        return "QAttention needs a bias"
    if any(_input(node, index) is not None for index in (4, 5, 6)) or sum(bool(o.name) for o in node.outputs) > 1:
        return "QAttention on this CPU has neither past nor a bias of the scores"
    if node.attributes.get_float("scale", 0.0) or node.attributes.get_int("do_rotary", 0):
        return "QAttention has neither a scale of its own nor rotary embeddings"
    if len(set(node.attributes.get_ints("qkv_hidden_sizes", []))) > 1:
        return "query, key and value differ in width"
    return Weight(value, tensor, False, ir.DataType.FLOAT)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None
