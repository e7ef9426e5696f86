"""An attention as standard operators, which tells how much of it each token received.

q, k, v = parts of x W + b;    p = softmax(q k' / sqrt(width) + mask);    y = p v
significance of a key = sum of p over heads and the queries that count     (Goyal et al., 2020, arXiv:2001.08950)
"""

from __future__ import annotations

import dataclasses
import math

import onnx_ir as ir

from ..graph.appending import Appender
from ..graph.constants import constant_of
from ..graph.rewriting import replace, required


@dataclasses.dataclass(frozen=True)
class Counted:
    """Which tokens count, in the forms that attentions read.

    Attributes:
        added: float32 [batch, 1, 1, tokens], added to scores of keys.
        weights: float32 [batch, 1, 1, tokens], 1 where a query counts, else 0.
    """

    added: ir.Value
    weights: ir.Value


def counted(write: Appender, mask: ir.Value, filter_value: float) -> Counted:
    """Of int32 [batch, tokens], 1 where a token counts; `filter_value` is added to the scores of the others."""
    weights = write.op("Unsqueeze", write.cast(mask, ir.DataType.FLOAT), write.ints(1, 2))
    left_out = write.op("Sub", write.number(1), weights)
    return Counted(write.op("Mul", left_out, write.number(filter_value)), weights)


def write_attention(write: Appender, node: ir.Node, mask: Counted | None) -> tuple[ir.Node, ir.Value]:
    """Put standard operators in the place of a com.microsoft::Attention with constant weights.

    Args:
        write: Appends to the graph of the node.
        node: The attention.
        mask: Which tokens count; None where all do.

    Returns:
        The product that makes queries, keys and values, which gets the name of the node, and the significance,
        float32 [batch, tokens].
    """
    heads, weight = node.attributes.get_int("num_heads", 1), required(node.inputs[1])
    inner = int(required(constant_of(weight)).shape.numpy()[1]) // 3
    sums = write.op("MatMul", required(node.inputs[0]), weight)
    qkv = write.op("Add", sums, required(node.inputs[2]))
    product = required(sums.producer())
    split = write.op("Split", qkv, write.ints(inner, inner, inner), outputs=3, axis=-1)
    q, k, v = required(split.producer()).outputs
    for part in (q, k, v):
        part.type = qkv.type
    q = write.op("Mul", q, write.number(1 / math.sqrt(inner // heads)))
    parts = (write.op("Reshape", part, write.ints(0, 0, heads, inner // heads)) for part in (q, k, v))
    q, k, v = (
        write.op("Transpose", part, perm=perm)
        for part, perm in zip(parts, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
    )
    scores = write.op("MatMul", q, k)
    if mask is not None:
        scores = write.op("Add", scores, mask.added)
    shares = write.op("Softmax", scores, axis=-1)
    received = shares if mask is None else write.op("MatMul", mask.weights, shares)
    significance = write.op("ReduceSum", received, write.ints(1, 2), keepdims=0)
    context = write.op("Transpose", write.op("MatMul", shares, v), perm=[0, 2, 1, 3])
    y = write.op("Reshape", context, write.ints(0, 0, inner), shape=node.outputs[0].shape)
    product.name = node.name
    replace(node, y)
    return product, significance
