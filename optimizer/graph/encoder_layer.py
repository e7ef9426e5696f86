"""What an encoder does around a self-attention: the layer as a whole.

Norms behind the residual sums, as Vaswani et al. (2017, arXiv:1706.03762) have them:

    h = norm1(x + attention(x) Wo + bo),    y = norm2(h + act(h Wup + bup) Wdown + bdown)

or ahead of the products (Xiong et al., 2020, arXiv:2002.04745):

    h = x + attention(norm1(x)) Wo + bo,    y = h + act(norm2(h) Wup + bup) Wdown + bdown
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from .constants import constant_of
from .matching import activation_behind, is_standard, sole_reader
from .rewriting import required


@dataclasses.dataclass(frozen=True)
class Norm:
    """A LayerNormalization over the last axis, with a constant scale and shift."""

    node: ir.Node
    x: ir.Value
    y: ir.Value
    scale: ir.Value
    shift: ir.Value
    epsilon: float


@dataclasses.dataclass(frozen=True)
class Product:
    """A MatMul by a constant matrix, and the constant vector that is added to it."""

    node: ir.Node
    bias: ir.Value | None
    y: ir.Value


@dataclasses.dataclass(frozen=True)
class FoundLayer:
    """A layer, from its input to the node whose output it takes over.

    Attributes:
        x: Its input [batch, sequence, H].
        attention: The com.microsoft::Attention.
        out: The product behind it.
        norm1: The norm of the first half.
        up: The first product of the perceptron.
        activation: "relu", "gelu" or "gelu_tanh", behind it.
        down: The second.
        norm2: The norm of the second half.
        last: The node that makes its output.
    """

    x: ir.Value
    attention: ir.Node
    out: Product
    norm1: Norm
    up: Product
    activation: str
    down: Product
    norm2: Norm
    last: ir.Node

    @property
    def norm_first(self) -> bool:
        """Whether norms are ahead of the products."""
        return self.last is not self.norm2.node

    @property
    def products(self) -> tuple[Product, Product, Product]:
        """Those behind the attention."""
        return self.out, self.up, self.down


def find_layer(attention: ir.Node) -> FoundLayer | str:
    """The layer around an attention, or why there is none."""
    out = _product(attention.outputs[0])
    if out is None:
        return "no product with a constant matrix behind the attention"
    x = required(attention.inputs[0])
    sums = _sums_with(out.y)
    for residual, total in sums:
        if residual is x:
            norm1 = _norm(sole_reader(total))
            return _second_half(attention, x, out, norm1, norm1) if norm1 else "no norm behind the attention's sum"
    norm1 = _norm(x.producer())
    if norm1 is not None and sole_reader(x) is attention:
        for residual, total in sums:
            if residual is norm1.x:
                norm2 = next((norm for node, _ in total.uses() if (norm := _norm(node)) is not None), None)
                return _second_half(attention, residual, out, norm1, norm2, total)
    return "the attention is not added to the input of the layer"


def _second_half(
    attention: ir.Node, x: ir.Value, out: Product, norm1: Norm, norm: Norm | None, total: ir.Value | None = None
) -> FoundLayer | str:
    """From the norm ahead of the perceptron on; `total` is what goes around it, the norm itself where None."""
    if norm is None:
        return "no norm ahead of the perceptron"
    h = norm.y if total is None else total
    readers = [node for node, _ in h.uses()]
    if h.is_graph_output() or len(readers) != 2:
        return "others read what is between attention and perceptron"
    if total is not None and sole_reader(norm.y) is None:
        return "others read the norm ahead of the perceptron"
    up = next((product for node in (n for n, _ in norm.y.uses()) if (product := _read_product(node, norm.y))), None)
    if up is None:
        return "no product with a constant matrix behind the norm"
    end, activation = activation_behind(required(up.y.producer()))
    if not activation:
        return "neither Relu nor Gelu between the products of the perceptron"
    down = _product(end.outputs[0])
    if down is None:
        return "no product with a constant matrix behind the activation"
    for residual, y in _sums_with(down.y):
        if residual is not h:
            continue
        if total is not None:
            return FoundLayer(x, attention, out, norm1, up, activation, down, norm, required(y.producer()))
        norm2 = _norm(sole_reader(y))
        if norm2 is None:
            return "no norm behind the perceptron's sum"
        return FoundLayer(x, attention, out, norm1, up, activation, down, norm2, norm2.node)
    return "the perceptron is not added to its input"


def _sums_with(value: ir.Value) -> list[tuple[ir.Value, ir.Value]]:
    """What a value that nobody else reads is added to, and the sum."""
    node = sole_reader(value)
    if node is None or not is_standard(node, "Add") or len(node.inputs) != 2:
        return []
    other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    return [(other, node.outputs[0])] if other is not None and constant_of(other) is None else []


def _product(x: ir.Value) -> Product | None:
    node = sole_reader(x)
    return _read_product(node, x) if node is not None else None


def _read_product(node: ir.Node, x: ir.Value) -> Product | None:
    if not is_standard(node, "MatMul") or node.inputs[0] is not x:
        return None
    add = sole_reader(node.outputs[0])
    if add is not None and is_standard(add, "Add"):
        bias = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
        tensor = constant_of(bias)
        if tensor is not None and len(tensor.shape) == 1 and tensor.dtype == ir.DataType.FLOAT:
            return Product(node, bias, add.outputs[0])
    return Product(node, None, node.outputs[0])


def _norm(node: ir.Node | None) -> Norm | None:
    if node is None or not is_standard(node, "LayerNormalization") or len(node.inputs) != 3:
        return None
    x, scale, shift = node.inputs
    if x is None or scale is None or shift is None or any(value.uses() for value in node.outputs[1:]):
        return None
    for value in (scale, shift):
        tensor = constant_of(value)
        if tensor is None or len(tensor.shape) != 1 or tensor.dtype != ir.DataType.FLOAT:
            return None
    if node.attributes.get_int("axis", -1) not in (-1, 2) or (x.shape is not None and len(x.shape) != 3):
        return None
    return Norm(node, x, node.outputs[0], scale, shift, node.attributes.get_float("epsilon", 1e-5))
