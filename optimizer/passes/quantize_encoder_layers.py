"""Whole layers of encoders become one operator, `onnxpress::EncoderLayer`.

It rounds what each product reads row by row, leaves out tokens that the mask does, and runs in three parallel regions.
`FuseAttention` has been there before; what a layer is says `find_layer`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir
from onnxpress.custom_ops import functions

from ..graph.constants import constant_of
from ..graph.encoder_layer import FoundLayer, Product, find_layer
from ..graph.matching import input_of, opset_of
from ..graph.rewriting import add_array, insert_before, replace, required
from ..model_io.names import names_of
from ..planning.plan import Decision, Weight
from ..planning.stored_weights import StoredWeights
from .base import GraphPass
from .declare_functions import add_function
from .fuse_attention import scope
from .remove_unused import remove_unused

_MOST_INPUTS = 1 << 15
"""Of a product: sums of more are not exact."""
_MOST_WIDTH = 1024
"""Of a head."""


class QuantizeEncoderLayers(GraphPass):
    """Rewrite the layers of the main graph all of whose products a plan takes.

    Cases: norms behind the residual sums or ahead of the products; Relu, Gelu by erf or tanh; products with a bias or
    without; with a mask of padding or without. Left with a reason: layers that are built otherwise, that others read
    into, of which a product stays in float.

    Args:
        decisions: What becomes of the products.
        fused: The Attention nodes of `FuseAttention`, and the decisions on them.
        stored: Where rounded weights go.
        search: Search the best scale of each column.
        significant: The attentions of layers that also tell what attention each token received.

    Attributes:
        made: The new nodes, by the attention of each.
    """

    def __init__(
        self, decisions: Sequence[Decision], fused: Sequence[Decision], stored: StoredWeights, search: bool = True,
        significant: Collection[ir.Node] = (),
    ) -> None:  # fmt: skip
        self._decisions = {decision.node: decision for decision in (*decisions, *fused) if decision.taken}
        self._attentions = [decision.node for decision in fused]
        self._stored = stored
        self._search = search
        self._significant = significant
        self.made: dict[ir.Node, ir.Node] = {}

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite; whether anything changed."""
        self._model = model
        for attention in self._attentions:
            if attention.graph is not model.graph:
                continue
            found = self._find(attention)
            if isinstance(found, str):
                self.left[attention.name or ""] = found
            else:
                self.made[attention] = self._replace(found)
        if self.made:
            remove_unused(model)  # or what is left of layers would be taken for products
        return bool(self.made)

    def _find(self, attention: ir.Node) -> FoundLayer | str:
        if opset_of(self._model) < functions.MIN_OPSET:
            return f"the opset is below {functions.MIN_OPSET} and cannot be raised"
        found = find_layer(attention)
        if isinstance(found, str):
            return found
        nodes = (attention, *(product.node for product in found.products))
        if any(node not in self._decisions for node in nodes):
            return "a product of the layer stays in float"
        return self._misfit(found) or found

    def _misfit(self, found: FoundLayer) -> str:
        """Why the sizes of a layer do not go together, or are too large; empty where they are right."""
        qkv, out, up, down = self._weights_of(found)
        H, inner, F = qkv.K, out.K, up.N
        if (3 * inner, H, H, F, H) != (qkv.N, out.N, up.K, down.K, down.N):
            return "the sizes of its products do not go together"
        products = zip(found.products, (out, up, down), strict=True)
        if any(
            (bias := constant_of(product.bias)) is not None and bias.size not in (1, w.N) for product, w in products
        ):
            return "a bias widens a product"
        vectors = [value for norm in (found.norm1, found.norm2) for value in (norm.scale, norm.shift)]
        if any(required(constant_of(value)).size != H for value in vectors):
            return "its norms are of another size"
        if found.norm1.epsilon != found.norm2.epsilon:
            return "its norms have different epsilons"
        if max(H, inner, F) > _MOST_INPUTS or inner // _heads(found) > _MOST_WIDTH:
            return "its products are too long"
        return ""

    def _weights_of(self, found: FoundLayer) -> list[Weight]:
        return [required(self._decisions[node].weight) for node in _nodes(found)]

    def _replace(self, found: FoundLayer) -> ir.Node:
        qkv, out, up, _ = self._weights_of(found)
        heads, mask = _heads(found), input_of(found.attention, 3)
        scale, epsilon = 1 / math.sqrt(out.K // heads), found.norm1.epsilon
        tells = found.attention in self._significant
        function = functions.encoder_layer(
            H=qkv.K, inner=out.K, F=up.N, heads=heads, scale=scale, epsilon=epsilon, activation=found.activation,
            norm_first=found.norm_first, mask=mask is not None, significance=tells, opset=opset_of(self._model),
        )  # fmt: skip
        y = insert_before(
            found.last, "EncoderLayer", [*self._inputs(found), *([mask] if mask is not None else [])],
            found.last.outputs[0], domain=functions.DOMAIN, overload=add_function(self._model, function).overload,
            suffix="_layer",
            attributes={
                "num_heads": heads, "scale": scale, "epsilon": epsilon, "activation": found.activation,
                "norm_first": int(found.norm_first),
            },
        )  # fmt: skip
        replace(found.last, y)
        node = required(y.producer())
        node.name = names_of(self._model.graph).node(f"{scope(found.out.node)}EncoderLayer")
        if tells:
            node.resize_outputs(2)
            received = node.outputs[1]
            received.name = names_of(self._model.graph).value(f"{node.name}_significance")
            received.type = ir.TensorType(ir.DataType.FLOAT)
        return node

    def _inputs(self, found: FoundLayer) -> list[ir.Value]:
        """All but the mask."""
        return [
            found.x,
            *self._weight(found.attention), required(found.attention.inputs[2]),
            *self._product(found.out), found.norm1.scale, found.norm1.shift,
            *self._product(found.up), *self._product(found.down), found.norm2.scale, found.norm2.shift,
        ]  # fmt: skip

    def _product(self, product: Product) -> list[ir.Value]:
        """Codes, scales and bias."""
        N = required(self._decisions[product.node].weight).N
        bias = constant_of(product.bias)
        array = np.zeros(N, np.float32) if bias is None else np.broadcast_to(bias.numpy(), N)
        name = f"{product.node.name}_bias"
        return [*self._weight(product.node), add_array(self._model.graph, name, np.ascontiguousarray(array))]

    def _weight(self, node: ir.Node) -> tuple[ir.Value, ir.Value]:
        """Codes and scales, of 8 bits whatever the machine: sums are exact."""
        decision = self._decisions[node]
        return self._stored.int8(self._model.graph, decision, search=self._search, reduce_range=False)


def _nodes(found: FoundLayer) -> tuple[ir.Node, ...]:
    """The products of a layer, that of the attention first."""
    return (found.attention, *(product.node for product in found.products))


def _heads(found: FoundLayer) -> int:
    return found.attention.attributes.get_int("num_heads", 1)
