"""Attention of encoders as one node: com.microsoft::Attention with its projections, or MultiHeadAttention without.

    q, k, v = x Wq + bq, x Wk + bk, x Wv + bv                       each [batch, sequence, heads * width]
    y = softmax(f q k' + mask) v,   head by head                    (Vaswani et al., 2017, arXiv:1706.03762, eq. 1)
      = Attention(x, [c Wq | Wk | Wv], [c bq | bk | bv], mask),     c = f sqrt(width)
      = MultiHeadAttention(q, k, v, mask or bias; scale = f)

for the first node scales its scores by 1 / sqrt(width). It takes a mask of padding alone, and its quantized form has
no bias. So what adds more to its scores (a causal triangle, windows, a bias by distance), or rotates its heads, becomes
the second. A causal triangle is a bias like any other rather than `unidirectional`: it is there as a tensor, mostly
with padding in it, and ONNX Runtime's kernel took as long either way.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ..graph.encoder_attention import Attention, AttentionCore, AttentionFinder, ProjectedAttention
from ..graph.matching import is_standard
from ..graph.rewriting import add_array, add_initializer
from ..graph.weight_form import MICROSOFT
from ..model_io.names import names_of
from .base import GraphPass
from .core_writer import CoreWriter
from .remove_unused import remove_unused

_STANDARD = ("", "ai.onnx")
_INPUTS = {
    "Add": 2, "Cast": 1, "Div": 2, "Expand": 2, "Gather": 2, "Identity": 1, "MatMul": 2, "Mul": 2, "Not": 1,
    "Reshape": 2, "Shape": 1, "Slice": 1, "Softmax": 1, "Squeeze": 1, "Sub": 2, "Transpose": 1, "Unsqueeze": 1,
    "Where": 3,
}  # fmt: skip


class FuseAttention(GraphPass):
    """Fuse every self-attention of the main graph that is wholly understood.

    Cases: projections with a bias or without, of three products or of one, weights behind a Transpose; factors as Mul
    or Div by a number on q, k or the scores; keys transposed at once or in steps; no mask, one that is added, or one
    that Where chooses by; heads split and merged by constant or computed shapes. Without the products: anything that
    is added to the scores or chosen by Where, in several steps, and by windows of images; rotated heads, heads shared
    by groups, keys and values of another tensor, or that others read. Left with a reason: what is no sum before the
    softmax, heads that are changed on the way, products that `refuse` gives a reason for.

    Args:
        refuse: The projection's MatMul -> why it must stay, or None.

    Attributes:
        fused: The new Attention nodes and the MatMuls that each replaces.
        cores: The new MultiHeadAttention nodes.
        left: The softmax of each attention that stays, by name, and why.
    """

    def __init__(self, refuse: Callable[[ir.Node], str | None] = lambda _node: None) -> None:
        self._refuse = refuse
        self.fused: dict[ir.Node, tuple[ir.Node, ...]] = {}
        self.cores: list[ir.Node] = []

    def rewrite(self, model: ir.Model) -> bool:
        """Fuse; whether anything changed."""
        if any(not _is_whole(node) for node in model.graph):
            return False
        finder = AttentionFinder(model)
        self._graph, self._writer = model.graph, CoreWriter(model.graph, finder.terms)
        for node in [n for n in model.graph if is_standard(n, "Softmax")]:
            found = finder.find(node)
            reason = found if isinstance(found, str) or found is None else self._fuse(found)
            if reason is not None:
                self.left[node.name or ""] = reason
        if self.fused or self.cores:
            model.graph.opset_imports.setdefault(MICROSOFT, 1)
            remove_unused(model)
        if self.cores:
            model.graph.sort()
        return bool(self.fused or self.cores)

    def _fuse(self, found: Attention) -> str | None:
        """Fuse with the products where the node adds nothing to scores but a mask of padding, or why not."""
        if isinstance(found, AttentionCore):
            self._fuse_core(found)
        elif found.biases:
            self._fuse_core(found.core)
        else:
            for name, projection in zip(("query", "key", "value"), found.projections, strict=True):
                if (reason := self._refuse(projection.product)) is not None:
                    return f"{name}: {reason}"
            self._fuse_all(found)
        return None

    def _fuse_core(self, found: AttentionCore) -> None:
        self.cores.append(self._writer.write(found))

    def _fuse_all(self, found: ProjectedAttention) -> None:
        heads = found.query.heads
        scale = found.factor * math.sqrt(heads.width)
        weight = add_initializer(self._graph, f"{scope(found.query.product)}qkv_weight", _merged(found, scale))
        bias = [p.bias_array() * np.float32(c) for p, c in zip(found.projections, (scale, 1, 1), strict=True)]
        b = add_array(self._graph, f"{scope(found.query.product)}qkv_bias", np.concatenate(bias))
        node = self._writer.put(found, "Attention", [found.query.x, weight, b], {"num_heads": heads.count})
        node.name = names_of(self._graph).node(f"{scope(found.query.product)}Attention")
        self.fused[node] = found.products


def _is_whole(node: ir.Node) -> bool:
    """Whether a node has the inputs that its operator always has; models may be anything."""
    least = _INPUTS.get(node.op_type, 0) if node.domain in _STANDARD else 0
    return len(node.inputs) >= least and all(value is not None for value in node.inputs[:least])


def _merged(found: ProjectedAttention, scale: float) -> ir.LazyTensor:
    """[K, 3 heads * width], put together when it is read."""
    projections = found.projections

    def evaluate() -> ir.TensorProtocol:
        query, key, value = (p.weight_array() for p in projections)
        return ir.tensor(np.concatenate([query * np.float32(scale), key, value], axis=1))

    columns = 3 * found.query.heads.count * found.query.heads.width
    return ir.LazyTensor(evaluate, ir.DataType.FLOAT, ir.Shape([found.query.K, columns]), name="qkv_weight")


def scope(node: ir.Node) -> str:
    """Such as "/layer.0/attention/self/" of "/layer.0/attention/self/query/MatMul"."""
    parts = (node.name or "attention").split("/")
    return "/".join([*parts[:-2], ""]) if len(parts) > 2 else f"{node.name}_"
