"""The scores of an attention with a past, from the product of queries and keys to the softmax.

    s = f q key'   or   cap tanh(f q key' / cap),   and then, in any order and number,
    s + m,    s where c and else a low number,    a s,    [batch * heads, queries, keys] split into batch and heads

A number so low that nothing is left of its key may as well be added. So what comes out is a multiple of s and a mask
that is a sum, told from the inside out.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from .constants import scalar
from .matching import is_standard
from .projection import is_private, without_factors
from .rewriting import required
from .score_mask import NEVER, Term
from .trial import UnknownError, is_of_sizes

_MOVES = ("Expand", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze")
_STEPS = ("Add", "Cast", "Div", "Identity", "Mul", "Reshape", "Tanh", "Where")
_FAR = 50


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a softmax reads.

    Attributes:
        product: The MatMul of queries and keys.
        factor: What it is multiplied by.
        cap: Of the scores; 0 where there is none.
        terms: What is added to them, from the inside out.
        split: What has an axis of heads, where the product is [batch * heads, queries, keys]; None where it has one.
    """

    product: ir.Node
    factor: float
    cap: float
    terms: tuple[Term, ...]
    split: ir.Value | None


def product_ahead(softmax: ir.Node) -> ir.Node | None:
    """The product of queries and keys ahead of a softmax, some of which are an input of the model."""
    first = softmax.inputs[0] if softmax.inputs else None
    return _product(first) if first is not None else None


def read_scores(value: ir.Value) -> Scores:
    """The scores that a softmax reads; raises UnknownError."""
    factor, cap, split = 1.0, 0.0, None
    terms: list[Term] = []
    while True:
        step, value = without_factors(value)
        factor *= step
        node = value.producer()
        if not is_private(value):
            break
        if is_standard(node, "MatMul"):
            return Scores(node, factor, cap, tuple(terms[::-1]), split)
        if is_standard(node, "Tanh") and not cap and factor > 0:
            cap, value = factor, required(node.inputs[0])
        elif is_standard(node, "Reshape") and split is None:
            split, value = value, required(node.inputs[0])
        elif is_standard(node, "Add", "Where") and not cap:
            value, term = _term(node, factor)
            terms.append(dataclasses.replace(term, flat=split is not None))
        else:
            break
    raise UnknownError("the scores are no product of two activations alone")


def _term(node: ir.Node, factor: float) -> tuple[ir.Value, Term]:
    """The scores ahead of an Add or a Where, and what it adds to them, times a factor."""
    whole = node.inputs if node.op_type == "Add" else node.inputs[1:]
    for index in (0, 1):
        scores, other = required(whole[index]), required(whole[1 - index])
        if _product(scores) is None:
            continue
        if node.op_type == "Add":
            return scores, Term(other, factor=factor)
        number = scalar(other)
        if number is not None and number * factor <= NEVER:
            return scores, Term(required(node.inputs[0]), is_choice=True, fill=number * factor, counts=index == 0)
        raise UnknownError("scores are chosen or else something that is no low number")
    raise UnknownError("the scores are no product of two activations alone")


def _product(value: ir.Value) -> ir.Node | None:
    """The product with keys of which some are an input of the model, whatever is between."""
    waiting, seen = [value], {value}
    while waiting:
        node = waiting.pop().producer()
        if is_standard(node, "MatMul") and concat_ahead(node.inputs[1]) is not None:
            return node
        if is_standard(node, *_STEPS):
            ahead = {each for each in node.inputs if each is not None and not is_of_sizes(each)} - seen
            waiting += ahead
            seen |= ahead
    return None


def concat_ahead(value: ir.Value | None) -> ir.Node | None:
    """The Concat of an input of the model with new keys or values that a product reads, over nodes that move."""
    for _ in range(_FAR):
        node = value.producer() if value is not None else None
        if is_standard(node, "Concat"):
            past = node.inputs[0]
            whole = len(node.inputs) == 2 and past is not None and past.is_graph_input() and node.inputs[1] is not None
            return node if whole and node.attributes.get_int("axis", 0) in (2, -2) else None
        if is_standard(node, *_MOVES):
            value = node.inputs[0]
        elif is_standard(node, "Mul", "Div"):
            value = next((each for each in node.inputs if each is not None and not is_of_sizes(each)), None)
            if value is node.inputs[1] and is_standard(node, "Div"):
                return None
        else:
            return None
    return None
