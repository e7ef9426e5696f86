"""Sums and products with constants go into the weights beside them: the pass over `linear_products`.

A chain of them (`affine_chains`) is one map s x + t. Where neither neighbour takes all of it, the least is left:

    W pad(s x + t) = (W s) pad(x + t / s)       one sum ahead of a Conv that pads
    s x + t                                     one product and one sum instead of more, or of a BatchNormalization
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..graph.affine_chains import Affine, Link, chain_before, chain_behind, composed, read_link
from ..graph.linear_products import Product, is_product
from ..graph.matching import is_standard, least_rank
from ..graph.rewriting import add_array, insert_before, replace
from .base import GraphPass
from .remove_unused import remove_unused

_OVERFLOW = "the folded numbers would not be finite"


class FoldAffine(GraphPass):
    """Fold Add, Sub, Mul and Div by constants, and BatchNormalization, all of float32.

    Cases: behind a product that nothing else reads; ahead of products that are all who read it; chains that are
    longer than they need to be; BatchNormalization that no product takes, as Mul and Add. The one bias of a MatMul
    stays an Add. Only the main graph is changed.

    Args:
        all_chains: Whether to fold more than what is behind a product.

    Attributes:
        left: Nodes that were left, by name, and why.
    """

    def __init__(self, *, all_chains: bool = True) -> None:
        self._all_chains = all_chains

    def rewrite(self, model: ir.Model) -> bool:
        """Fold; whether anything changed."""
        changed = False
        for node in list(model.graph):
            if node.graph is not None and is_product(node):
                changed |= self._behind(Product(node))
        if self._all_chains:
            changed |= self._chains(model)
        if changed:
            remove_unused(model)
        return changed

    def _chains(self, model: ir.Model) -> bool:
        """What is left of chains, from the end, so that each is met whole."""
        changed = False
        for node in reversed(list(model.graph)):
            if node.graph is not None and (chain := chain_before(node.outputs[0])) and chain[-1].node is node:
                changed |= self._ahead(chain) or self._shorten(chain)
        return changed

    def _behind(self, product: Product) -> bool:
        """Into the product that makes what a chain reads."""
        chain = chain_behind(product.node.outputs[0])
        taken: list[Link] = []
        while len(taken) < len(chain) and product.refusal is None:
            if product.behind(chain[len(taken)].map) is None:
                break
            taken.append(chain[len(taken)])
        if len(taken) < len(chain):
            self.left[chain[len(taken)].node.name or ""] = product.refusal or "it is not one number a channel"
        if not taken or (not product.has_bias and len(taken) == 1 and is_standard(taken[0].node, "Add")):
            return False
        whole = product.behind(composed(taken))
        assert whole is not None
        rest = np.zeros((), np.float32)
        if not product.has_bias:
            rest, whole = whole.shift.astype(np.float32), Affine(whole.scale, np.zeros_like(whole.shift), whole.shape)
        folded = product.folded(behind=whole)
        if folded is None or not np.isfinite(rest).all():
            return self._leave(taken, _OVERFLOW)
        product.take(*folded)
        result = product.node.outputs[0]
        if rest.any():
            result = _emit(taken[-1], "Add", result, rest)
        replace(taken[-1].node, result)
        _remove(taken[:-1])
        return True

    def _ahead(self, chain: list[Link]) -> bool:
        """Into all products that read what a chain makes."""
        value, whole = chain[-1].output, composed(chain)
        readers = [Product(node) for node, index in value.uses() if index == 0 and is_product(node)]
        if not readers:
            return False
        if len(readers) < len(value.uses()) or value.is_graph_output():
            return self._leave(chain, "others than products read it")
        if any(product.node.graph is not chain[-1].node.graph for product in readers):
            return self._leave(chain, "a graph inside a node reads it")
        if _ends_normalization(chain[0]):
            return self._leave(chain, "the end of a normalization, which ONNX Runtime computes as one")
        for product in readers:
            if product.refusal is not None or product.ahead(whole, chain[0].x) is None:
                return self._leave(chain, product.refusal or "it is not one number a channel of what it reads")
        result, shift = chain[0].x, None
        reason = next((reason for product in readers if (reason := product.refuse_shift())), None)
        if whole.shifts and reason is not None:
            if not whole.scales or not whole.scale.all():
                return self._leave(chain, reason)
            with np.errstate(all="ignore"):
                shift = np.broadcast_to(whole.shift / whole.scale, whole.shape).astype(np.float32)
            whole = Affine(whole.scale, np.zeros(()), whole.shape)
        folded = [product.folded(ahead=product.ahead(whole, chain[0].x)) for product in readers]
        if any(each is None for each in folded) or (shift is not None and not np.isfinite(shift).all()):
            return self._leave(chain, _OVERFLOW)
        if shift is not None:
            result = _emit(chain[-1], "Add", result, shift)
            self.left[f"{chain[-1].node.name}_term"] = reason or ""
        for product, each in zip(readers, folded, strict=True):
            assert each is not None
            product.take(*each)
        _redirect(value, result)
        _remove(chain)
        return True

    def _shorten(self, chain: list[Link]) -> bool:
        """One Mul and one Add at the most, where neither does nothing."""
        value, whole, x = chain[-1].output, composed(chain), chain[0].x
        steps = [("Mul", whole.scale)] * whole.scales + [("Add", whole.shift)] * whole.shifts
        is_normalized = any(is_standard(link.node, "BatchNormalization") for link in chain)
        if len(steps) >= len(chain) and not is_normalized:
            return False
        if not steps:
            if value.is_graph_output() or max(whole.shape, default=1) > 1 or len(whole.shape) > least_rank(x):
                return False
            _redirect(value, x)
            _remove(chain)
            return True
        # What broadcasts the input to more axes or sizes has to go on doing so.
        steps[-1] = (steps[-1][0], np.broadcast_to(steps[-1][1], whole.shape))
        with np.errstate(all="ignore"):
            arrays = [array.astype(np.float32) for _, array in steps]
        if not all(np.isfinite(array).all() for array in arrays):
            return self._leave(chain, _OVERFLOW)
        result = x
        for (op_type, _), array in zip(steps, arrays, strict=True):
            result = _emit(chain[-1], op_type, result, array)
        replace(chain[-1].node, result)
        _remove(chain[:-1])
        return True

    def _leave(self, chain: list[Link], reason: str) -> bool:
        self.left[chain[-1].node.name or ""] = reason
        return False


def _ends_normalization(link: Link) -> bool:
    """Whether it is the gamma of what an exporter wrote out as a layer normalization."""
    maker = link.x.producer()
    return is_standard(link.node, "Mul") and is_standard(maker, "Div") and read_link(maker) is None


def _emit(before: Link, op_type: str, x: ir.Value, array: npt.NDArray[np.float32]) -> ir.Value:
    graph = before.node.graph
    assert isinstance(graph, ir.Graph)
    name = "factor" if op_type == "Mul" else "term"
    constant = add_array(graph, f"{before.output.name}_{name}_constant", array)
    return insert_before(before.node, op_type, [x, constant], before.output, suffix=f"_{name}")


def _redirect(value: ir.Value, new: ir.Value) -> None:
    for node, index in value.uses():
        node.replace_input_with(index, new)


def _remove(chain: list[Link]) -> None:
    for link in reversed(chain):
        assert link.node.graph is not None
        link.node.graph.remove(link.node, safe=True)
