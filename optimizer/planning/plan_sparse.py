"""Which products become sparse ones, and why the others stay dense."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
from onnxpress.custom_ops import functions

from ..graph.opset_obstacle import obstacle
from ..settings.recipe import Recipe
from ..sparsity import Block
from .plan import Decision, has_weight, plan

_MOST_INT8 = (2**31 - 1) // (255 * 128)  # products of uint8 and int8 codes


def plan_sparse(model: ir.Model, recipe: Recipe, block: Block) -> list[Decision]:
    """Decide on every node that has, or could have, a weight; embedding tables are only read, and stay as they are.

    Args:
        model: The model.
        recipe: What is asked for.
        block: Sizes of the blocks.
    """
    too_old = obstacle(model, functions.MIN_OPSET)
    found = plan(model, recipe, "scheme sparse does")
    decisions = [_for_sparse(decision, recipe, block) for decision in found if has_weight(decision)]
    return [each.but_left(too_old) if too_old is not None and each.taken else each for each in decisions]


def _for_sparse(decision: Decision, recipe: Recipe, block: Block) -> Decision:
    if not decision.taken:
        return decision
    reason = _refuse(decision, recipe, block)
    if reason is not None:
        return decision.but_left(reason)
    return dataclasses.replace(decision, scheme=f"sparse {recipe.dtype} in blocks of {block}")


def _refuse(decision: Decision, recipe: Recipe, block: Block) -> str | None:
    weight, node = decision.weight, decision.node
    assert weight is not None
    if weight.dtype != ir.DataType.FLOAT:
        return "computes on float16; scheme sparse takes float32"
    if weight.value.is_graph_output():
        return "the weight is an output of the graph, too"
    if len(weight.value.uses()) > 1:
        others = any(reader is not node for reader in weight.value.consumers())
        return "another node reads the weight, too" if others else "the node reads the weight twice"
    if block.k > weight.K or block.n > weight.N:
        return f"a block of {block} is larger than the weight of {weight.K} x {weight.N}"
    if recipe.dtype == "int8" and weight.K > _MOST_INT8:
        return f"K of {weight.K} is beyond {_MOST_INT8}, for which sums of int8 products fit in int32"
    if decision.path:
        return "inside a graph of a node; scheme sparse takes products of the main graph"
    if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) == 1:
        return "reads its input transposed"
    return None
