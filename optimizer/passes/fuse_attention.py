"""Self-attention of encoders as one node, com.microsoft::Attention.

    q, k, v = x Wq + bq, x Wk + bk, x Wv + bv                       each [batch, sequence, heads * width]
    y = softmax(f q k' + mask) v,   head by head                    (Vaswani et al., 2017, arXiv:1706.03762, eq. 1)
      = Attention(x, [c Wq | Wk | Wv], [c bq | bk | bv], mask),     c = f sqrt(width)

for the node scales its scores by 1 / sqrt(width). Factors are collected wherever the graph has them: behind q, k, or
their product. The mask is read by `padding_mask`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ..graph.constants import scalar
from ..graph.packed_projection import read_packed
from ..graph.padding_mask import NOT_PADDING, PaddingMask, added_mask, chosen_mask
from ..graph.projection import Projection, is_private, merged_heads, read_projection, reader, without_factors
from ..graph.rewriting import add_array, add_initializer, insert_before, replace, required
from ..graph.sharing import made_behind
from ..model_io.names import names_of
from .base import GraphPass
from .remove_unused import remove_unused

MICROSOFT = "com.microsoft"
_STANDARD = ("", "ai.onnx")
_INPUTS = {
    "Add": 2, "Cast": 1, "Div": 2, "Expand": 2, "Gather": 2, "Identity": 1, "MatMul": 2, "Mul": 2, "Not": 1,
    "Reshape": 2, "Shape": 1, "Slice": 1, "Softmax": 1, "Squeeze": 1, "Sub": 2, "Transpose": 1, "Unsqueeze": 1,
    "Where": 3,
}  # fmt: skip
_SPLIT = (0, 2, 1, 3)
_SPLIT_AND_TURNED = (0, 2, 3, 1)


@dataclasses.dataclass(frozen=True)
class FoundAttention:
    """An attention, from its projections to the node whose output it takes over."""

    query: Projection
    key: Projection
    value: Projection
    factor: float
    mask: PaddingMask | None
    last: ir.Node

    @property
    def projections(self) -> tuple[Projection, Projection, Projection]:
        """All three."""
        return self.query, self.key, self.value


class FuseAttention(GraphPass):
    """Fuse every self-attention of the main graph that is wholly understood.

    Cases: projections with a bias or without, of three products or of one, weights behind a Transpose; factors as Mul
    or Div by a number on q, k or the scores; keys transposed at once or in steps; no mask, one that is added, or one
    that Where chooses by; heads split and merged by constant or computed shapes. Left with a reason: other masks than
    of padding, attention over another tensor, values that others read (such as keys kept for later), products that
    `refuse` gives a reason for.

    Args:
        refuse: The projection's MatMul -> why it must stay, or None.

    Attributes:
        fused: The new nodes and the three MatMuls that each replaces.
        left: The softmax of each attention that stays, by name, and why.
    """

    TAKES_PACKED = True
    """Whether queries, keys and values may be columns of one product."""

    def __init__(self, refuse: Callable[[ir.Node], str | None] = lambda _node: None) -> None:
        self._refuse = refuse
        self.fused: dict[ir.Node, tuple[ir.Node, ...]] = {}

    def rewrite(self, model: ir.Model) -> bool:
        """Fuse; whether anything changed."""
        if any(not _is_whole(node) for node in model.graph):
            return False
        self._graph = model.graph
        self._opset = model.graph.opset_imports.get("", 0)
        self._softmax_axis = -1 if self._opset >= 13 else 1
        self._masks: dict[tuple[ir.Value, int], ir.Value] = {}
        for node in [n for n in model.graph if n.op_type == "Softmax" and n.domain in _STANDARD]:
            found = self._find(node)
            if isinstance(found, FoundAttention):
                self._fuse(found)
            elif found is not None:
                self.left[node.name or ""] = found
        if self.fused:
            model.graph.opset_imports.setdefault(MICROSOFT, 1)
            remove_unused(model)
        return bool(self.fused)

    def _find(self, softmax: ir.Node) -> FoundAttention | str | None:
        """The attention around a softmax, why there is none, or None where it is no attention at all."""
        product = reader(softmax.outputs[0])
        if product is None or product.op_type != "MatMul" or product.inputs[0] is not softmax.outputs[0]:
            return None
        scores = required(softmax.inputs[0])
        shape = softmax.outputs[0].shape
        if softmax.attributes.get_int("axis", self._softmax_axis) not in (-1, 3) or (
            shape is not None and len(shape) != 4
        ):
            return "softmax over other axes than [batch, heads, queries, keys]"
        scores, mask = _without_mask(scores)
        if mask == NOT_PADDING:
            return NOT_PADDING
        assert not isinstance(mask, str)
        factor, scores = without_factors(scores)
        dots = scores.producer()
        if dots is None or dots.op_type != "MatMul" or not is_private(scores):
            return "the scores are no product of two activations alone"
        return self._gather(dots, product, factor, mask)

    def _gather(self, dots: ir.Node, product: ir.Node, factor: float, mask: PaddingMask | None) -> FoundAttention | str:
        read = self._read(*map(required, (dots.inputs[0], dots.inputs[1], product.inputs[1])))
        if isinstance(read, str):
            return read
        q, k, v = read
        heads = q.heads
        if not q.x is k.x is v.x:
            return "query, key and value are of different tensors"
        if not heads == k.heads == v.heads:
            return "query, key and value differ in heads or width"
        if v.factor != 1.0:
            return "a factor behind the values"
        if mask is not None and _is_one_for_all(mask.root, q.x):
            return NOT_PADDING
        last = merged_heads(product.outputs[0], q)
        if isinstance(last, str):
            return last
        return FoundAttention(q, k, v, factor * q.factor * k.factor, mask, last)

    def _read(self, query: ir.Value, key: ir.Value, value: ir.Value) -> tuple[Projection, ...] | str:
        """The three projections, or why they are none."""
        ways = {"query": (query, _SPLIT), "key": (key, _SPLIT_AND_TURNED), "value": (value, _SPLIT)}
        read = {name: read_projection(*way) for name, way in ways.items()}
        if self.TAKES_PACKED and any(isinstance(each, str) for each in read.values()):
            packed = read_packed(query, key, value, self._opset)
            if isinstance(packed, str):
                return f"query, key and value: {packed}"
            read = dict(zip(ways, packed, strict=True)) if packed is not None else read
        for name, each in read.items():
            reason = each if isinstance(each, str) else self._refuse(each.product)
            if reason is not None:
                return f"{name}: {reason}"
        return tuple(each for each in read.values() if isinstance(each, Projection))

    def _fuse(self, found: FoundAttention) -> None:
        last, heads = found.last, found.query.heads
        scale = found.factor * math.sqrt(heads.width)
        weight = add_initializer(self._graph, f"{scope(found.query.product)}qkv_weight", _merged(found, scale))
        bias = [p.bias_array() * np.float32(c) for p, c in zip(found.projections, (scale, 1, 1), strict=True)]
        b = add_array(self._graph, f"{scope(found.query.product)}qkv_bias", np.concatenate(bias))
        inputs = [found.query.x, weight, b]
        if found.mask is not None:
            inputs.append(self._mask(found.mask))
        y = insert_before(
            last, "Attention", inputs, last.outputs[0], domain=MICROSOFT, suffix="",
            attributes={"num_heads": heads.count},
        )  # fmt: skip
        node = y.producer()
        assert node is not None
        node.name = names_of(self._graph).node(f"{scope(found.query.product)}Attention")
        if found.mask is not None:
            node.attributes["mask_filter_value"] = ir.AttrFloat32("mask_filter_value", found.mask.filter_value)
        replace(last, y)
        self.fused[node] = tuple(dict.fromkeys(p.product for p in found.projections))

    def _mask(self, mask: PaddingMask) -> ir.Value:
        """int32 [batch, keys], 1 where a key counts; made once for all layers."""
        key = (mask.root, mask.counts)
        if key not in self._masks:
            self._masks[key] = self._integers(mask)
        return self._masks[key]

    def _integers(self, mask: PaddingMask) -> ir.Value:
        value = mask.root
        if not mask.counts:
            if value.dtype in (ir.DataType.INT64, ir.DataType.INT32):
                zero = add_array(self._graph, f"{value.name}_zero", np.zeros((), value.dtype.numpy()))
                value = self._behind("Equal", value, zero)
            else:
                value = self._behind("Not", value)
        if mask.root.shape is not None and len(mask.root.shape) == 4:
            axes = add_array(self._graph, f"{mask.root.name}_axes", np.array([1, 2], np.int64))
            value = self._behind("Squeeze", value, axes)
        value = self._behind("Cast", value, to=int(ir.DataType.INT32))
        value.type = ir.TensorType(ir.DataType.INT32)
        if mask.root.shape is not None:
            value.shape = ir.Shape([mask.root.shape[0], mask.root.shape[-1]])
        return value

    def _behind(self, op_type: str, value: ir.Value, *more: ir.Value, **attributes: int) -> ir.Value:
        name = f"{value.name}_{op_type.lower()}"
        return made_behind(value, self._graph, op_type, [value, *more], name, **attributes)


def _is_whole(node: ir.Node) -> bool:
    """Whether a node has the inputs that its operator always has; models may be anything."""
    least = _INPUTS.get(node.op_type, 0) if node.domain in _STANDARD else 0
    return len(node.inputs) >= least and all(value is not None for value in node.inputs[:least])


def _without_mask(scores: ir.Value) -> tuple[ir.Value, PaddingMask | str | None]:
    """The scores before their mask, and the mask; `NOT_PADDING` where it is of another kind."""
    node = scores.producer()
    if node is None or node.domain not in _STANDARD or node.op_type not in ("Add", "Where"):
        return scores, None
    if not is_private(scores):
        return scores, NOT_PADDING
    if node.op_type == "Add":
        for index in (0, 1):
            other = required(node.inputs[1 - index])
            if _is_product(other) and (mask := added_mask(required(node.inputs[index]))) is not None:
                return other, mask
        return scores, NOT_PADDING
    for index in (1, 2):
        fill = scalar(node.inputs[3 - index])
        if fill is not None and (chosen := chosen_mask(required(node.inputs[0]), fill, index == 1)) is not None:
            return required(node.inputs[index]), chosen
    return scores, NOT_PADDING


def _is_product(value: ir.Value) -> bool:
    node = without_factors(value)[1].producer()
    return node is not None and node.op_type == "MatMul"


def _is_one_for_all(mask: ir.Value, x: ir.Value) -> bool:
    """Whether a mask of one entry serves a batch of several, which the node does not do."""
    batch = x.shape[0] if x.shape is not None and len(x.shape) else None
    return mask.shape is not None and mask.shape[0] == 1 and batch != 1


def _merged(found: FoundAttention, scale: float) -> ir.LazyTensor:
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
