"""Inputs of products are divided by scales, and the weights that read them multiplied, in constants that are there.

    W x = (W diag(s)) (x / s)

What makes x takes 1 / s as `absorb_scale` has it: the scale and bias of a norm, a Mul or Add by a vector, the weight of
the product before, also through the gate of a gated layer. Between the projection of values and that of the outputs of
an attention stand heads: each number of P V, with V [sequence, width] and P the same for all of a head, has the channel
of V that it is a sum over, so

    Reshape(Transpose(P Transpose(Reshape(x)))) / s = Reshape(Transpose(P Transpose(Reshape(x / s)))),

as long as no head is repeated in between.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..graph.constants import constant_of, sources_of
from ..graph.matching import input_of, is_standard
from ..graph.projection import is_private, merged_heads, read_projection
from ..graph.rewriting import required
from ..planning.int8_operators import understand
from ..planning.plan import UNOBSERVED, Decision
from .absorb_scale import Operand, Reader, find_makers, products_by_input
from .base import GraphPass
from .remove_unused import remove_unused

_HEADS = (0, 2, 1, 3)
"""The order of axes that puts heads before the sequence, and back."""
_VALUE, _FOLLOWING = 2, (3, 6, 7)
"""Inputs of MultiHeadAttention: the values; a bias for them too, and those that are kept from before."""


@dataclasses.dataclass(frozen=True)
class Foldable:
    """A tensor whose channels can be divided.

    Attributes:
        value: The tensor.
        readers: The products that read it, all of which take the scales.
        makers: The constants that take their inverse.
    """

    value: ir.Value
    readers: list[Reader]
    makers: list[Operand]

    @property
    def name(self) -> str:
        """Of the tensor."""
        return self.value.name or ""

    def fold(self, scales: npt.NDArray[np.floating]) -> None:
        """Divide the tensor by scales [K]."""
        exact = scales.astype(np.float64)
        for maker in self.makers:
            maker.multiply(1 / exact)
        for reader in self.readers:
            reader.multiply(exact)


class FoldScales(GraphPass):
    """Fold scales of inputs of products into constants, the float model staying what it is.

    Cases: all readers of a tensor are MatMul or Gemm with weights of their own, of float32, and LayerNormalization,
    RMSNormalization, the norms of ONNX Runtime, Mul or Add by constants, another product or a gated layer makes it, or
    the attention that `values_behind` reads. Left: tensors that others read, or that are outputs of the graph, and
    weights that several nodes read, of which copies would have to be made.

    Args:
        decisions: Which nodes are rounded; tensors that none of these reads are not looked at.
        scales: float [K], positive, by name of the tensor.

    Attributes:
        left: By name of the rounded node, why its input cannot be divided.
    """

    def __init__(self, decisions: Sequence[Decision], scales: Mapping[str, npt.NDArray[np.floating]]) -> None:
        self._decisions, self._scales = decisions, scales

    def rewrite(self, model: ir.Model) -> bool:
        """Fold; whether anything changed."""
        found, reasons = foldable(model, self._decisions)
        self.left.update(reasons)
        chosen = [each for each in found if each.name in self._scales]
        for each in chosen:
            each.fold(self._scales[each.name])
        if chosen:
            remove_unused(model)
        return bool(chosen)


def foldable(model: ir.Model, decisions: Sequence[Decision]) -> tuple[list[Foldable], dict[str, str]]:
    """The tensors that scales can be folded into, in the order of their readers, and why not those of other nodes.

    Args:
        model: With its constants marked.
        decisions: Which nodes are rounded.

    Returns:
        Those that rounded nodes read, and by name of the rounded node the reason against others.
    """
    taken = {each.node: each for each in decisions if each.taken and each.op_type != "Gather"}
    left = {each.node_name: UNOBSERVED for each in taken.values() if each.path}
    found, seen = [], {node for node, each in taken.items() if each.path}
    for value, readers in products_by_input(model).items():
        rounded = [reader.node for reader in readers if reader.node in taken]
        seen.update(rounded)
        makers = _makers(value, readers) if rounded else ""
        if isinstance(makers, str):
            left.update((taken[node].node_name, makers) for node in rounded)
        else:
            found.append(Foldable(value, readers, makers))
    left.update((each.node_name, _no_product(node)) for node, each in taken.items() if node not in seen)
    return found, left


def _no_product(node: ir.Node) -> str:
    """Why a node is no reader that takes a scale."""
    if not is_standard(node, "MatMul", "Gemm"):
        return f"inputs of {node.op_type} are not divided"
    reason = understand(node)
    return reason if isinstance(reason, str) else "its weight is no matrix of float32"


def _makers(value: ir.Value, readers: Sequence[Reader]) -> list[Operand] | str:
    """The constants that divide a tensor, or why it cannot be divided."""
    nodes, channels = [reader.node for reader in readers], readers[0].channels
    if any(_is_shared(node.inputs[1]) for node in nodes):
        return "its weight has other readers"
    makers = find_makers(value, nodes, channels)
    if isinstance(makers, str) and (projected := values_behind(value)) is not None:
        if isinstance(projected, str):
            return projected
        makers = find_makers(projected, {node for node, _ in projected.uses()}, channels)
    if isinstance(makers, str):
        return makers
    if any(_is_matrix(maker) and _is_shared(maker.node.inputs[maker.index]) for maker in makers):
        return "the weight that makes it has other readers"
    return makers


def values_behind(merged: ir.Value) -> ir.Value | str | None:
    """The projection of values of an attention whose merged heads a tensor holds, channel by channel.

    Args:
        merged: [batch, sequence, heads * width], of MultiHeadAttention, or of Transpose and Reshape behind the product
            of probabilities and values.

    Returns:
        The projection, [batch, sequence, heads * width], which nobody else reads; why there is none; or None for what
        is no attention.
    """
    node = merged.producer()
    if node is not None and (node.domain, node.op_type) == ("com.microsoft", "MultiHeadAttention"):
        value = input_of(node, _VALUE)
        kept = any(input_of(node, index) is not None for index in _FOLLOWING)
        if value is None or kept or any(each.name and each.uses() for each in node.outputs[1:]):
            return "values have a bias of their own, or are kept for later"
        if any(each.is_graph_output() for each in node.outputs[1:]):
            return "values are kept for later"
        return value if is_private(value) else "others read the values too"
    turn = _made_by(merged, "Reshape")
    product = _made_by(turn, "Transpose")
    attended = _made_by(product, "MatMul", 1)
    if product is None or attended is None or constant_of(attended) is not None:
        return None
    projection = read_projection(attended, _HEADS)
    if isinstance(projection, str):
        return f"the values of its attention: {projection}"
    if not is_private(projection.result):
        return "others read the values too"
    merge = merged_heads(product, projection)
    if isinstance(merge, str):
        return merge
    return projection.result if merge is node else None


def _made_by(value: ir.Value | None, op_type: str, index: int = 0) -> ir.Value | None:
    """An input of the standard operator that makes a value, where it is this one."""
    node = value.producer() if value is not None else None
    return input_of(node, index) if is_standard(node, op_type) else None


def _is_matrix(operand: Operand) -> bool:
    """Whether a copy of a constant weighs more than the scales do."""
    return required(constant_of(operand.node.inputs[operand.index])).size > max(operand.shape)


def _is_shared(value: ir.Value | None) -> bool:
    """Whether several nodes read a constant, or one that it is computed of."""
    stored = [] if value is None else [value, *sources_of(value)]
    return any(len(each.uses()) > 1 or each.is_graph_output() for each in stored)
