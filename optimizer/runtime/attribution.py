"""Which product of a model the nodes that ONNX Runtime runs in its place belong to.

Its optimizer fuses nodes, changes layouts and lets operators on codes take the place of groups. What is left of the
model are names: a node keeps its own, perhaps with `_token_N` or `/MatMulAddFusion` behind it, or is named after the
tensor that it makes, as `NAME_nchwc` is; and most tensors between nodes keep theirs. A product that was fused with what
follows makes the last tensor of all, from which the way back through the model leads to the product.

All other nodes hang on products. What the model has is counted with the nearest product before it, of several that are
as near with the last, as an Add is fused into the last product where it can be. What was inserted (a `QuantizeLinear`,
a change of layout) is counted with the nearest product behind it, for whose sake it is there; several share it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import onnx_ir as ir

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_RUN_AS = _PRODUCTS | {
    "FusedConv", "NhwcFusedConv", "FusedGemm", "FusedMatMul", "QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul",
    "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits",
}  # fmt: skip
_ADDED = re.compile(r"(/\w+Fusion/?|_token_\d+)+$")  # to a name, by a fusion and to make it unique
_BLOCKED = "_nchwc"  # and to the tensor that a node of blocked channels makes

Shares = dict[str, float]
"""Parts, by the name of the product, that sum to one."""


class Attribution:
    """The nodes of an optimized graph against those of its model.

    Args:
        source: The model.
        optimized: Its graph as ONNX Runtime runs it.
    """

    def __init__(self, source: ir.Model, optimized: ir.Model) -> None:
        self._nodes = {node.name: node for node in source.graph if node.name}
        self._makers = {value.name: node for node in source.graph for value in node.outputs if value.name}
        self._order = {node: index for index, node in enumerate(source.graph)}
        self._graph = optimized.graph
        self._origins = {node: self._find_origin(node) for node in optimized.graph}
        self._products = {
            node: origin.name
            for node, origin in self._origins.items()
            if node.op_type in _RUN_AS and origin is not None and origin.op_type in _PRODUCTS and origin.name
        }

    def origin(self, node: ir.Node) -> str | None:
        """Name of the model's node that a node of the optimized graph stands for; None of one that was inserted."""
        origin = self._origins[node]
        return None if origin is None else origin.name

    def products(self) -> set[str]:
        """Names of the model's products that the optimized graph has."""
        return set(self._products.values())

    def work(self, node: ir.Node) -> tuple[str, str, str] | None:
        """Operator and origin: what the other form of a model does alike; None of products and what was inserted."""
        origin = self._origins[node]
        if node in self._products or origin is None:
            return None
        return node.domain, node.op_type, origin.name or ""

    def shares(self, node: ir.Node) -> Shares:
        """The products that a node of the optimized graph is counted with; empty where it hangs on none."""
        if node in self._products:
            return {self._products[node]: 1.0}
        directions = [_before, _behind]
        if self._is_inserted_for_readers(node):
            directions.reverse()
        for direction in directions:
            near = self._nearest(node, direction)
            if direction is _before:
                near = sorted(near, key=lambda name: self._order[self._nodes[name]])[-1:]
            if near:
                return {name: near.count(name) / len(near) for name in near}
        return {}

    def _is_inserted_for_readers(self, node: ir.Node) -> bool:
        if node.op_type == "DequantizeLinear":
            return any(reader in self._products for reader in _behind(node))
        return node.op_type == "QuantizeLinear" or self._origins[node] is None

    def _nearest(self, node: ir.Node, direction: Callable[[ir.Node], Iterable[ir.Node]]) -> list[str]:
        level, seen = [node], {node}
        while level:
            level = [other for current in level for other in direction(current)]
            level = [other for other in dict.fromkeys(level) if other not in seen]
            seen.update(level)
            if found := [self._products[other] for other in level if other in self._products]:
                return found
        return []

    def _made(self, node: ir.Node) -> str | None:
        """The model's tensor that a node makes, perhaps in another layout."""
        name = node.name or ""
        named = [name.removesuffix(_BLOCKED)] if name.endswith(_BLOCKED) else []
        return next((name for name in [*named, *(v.name or "" for v in node.outputs)] if name in self._makers), None)

    def _find_origin(self, node: ir.Node) -> ir.Node | None:
        name = node.name or ""
        found = self._nodes.get(name)
        # A Transpose that was inserted is Transpose_token_N, whatever the model calls Transpose.
        if found is None and node.op_type != "Transpose":
            found = self._nodes.get(_ADDED.sub("", name))
        if found is None and (made := self._made(node)) is not None:
            found = self._makers[made]
        if found is not None and node.op_type in _RUN_AS and found.op_type not in _PRODUCTS:
            return self._product_within(found)
        return found

    def _product_within(self, node: ir.Node) -> ir.Node:
        """The nearest product that a node of the model computes from, the last of equally near ones; else itself."""
        level, seen = [node], {node}
        while level:
            level = [other for current in level for other in _before(current) if other not in seen]
            seen.update(level)
            if found := [other for other in level if other.op_type in _PRODUCTS]:
                return max(found, key=lambda other: self._order[other])
        return node


def _before(node: ir.Node) -> list[ir.Node]:
    producers = [value.producer() for value in node.inputs if value is not None]
    return [producer for producer in producers if producer is not None]


def _behind(node: ir.Node) -> list[ir.Node]:
    return [use.node for value in node.outputs for use in value.uses()]
