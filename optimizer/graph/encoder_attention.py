"""Attention without a past, as encoders have it: with its projections, or only what is between heads and their merging.

    q, k, v = x Wq + bq, x Wk + bk, x Wv + bv                       each [batch, sequence, heads * width]
    y       = softmax(f q k' + t1 + t2 + ...) v,   head by head     (Vaswani et al., 2017, arXiv:1706.03762, eq. 1)

Projections are known by the nodes that split them into heads. Where that fails the heads alone are looked for, which
may be rotated, cut from one product, or shared by groups: what makes them is told by tries (see `trial`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from .cached_attention import has_past, merge_behind, product_behind
from .element_type import is_float32
from .encoder_trials import encoder_cases
from .matching import is_standard, opset_of
from .packed_projection import read_packed
from .padding_mask import PaddingMask
from .projection import Projection, is_private, merged_heads, read_projection, without_factors
from .rewriting import required
from .rotary import Heads, read_heads
from .score_terms import Bias, Terms, read_terms
from .trial import UnknownError

_SPLIT = (0, 2, 1, 3)
_SPLIT_AND_TURNED = (0, 2, 3, 1)


@dataclasses.dataclass(frozen=True)
class AttentionCore:
    """What MultiHeadAttention computes.

    Attributes:
        query: Of the heads.
        key: Likewise; as many as of the query, or each for a group of these.
        value: Likewise, as many as of the keys.
        factor: That scores are multiplied by.
        mask: Of padding, None where there is none.
        biases: What else is added to the scores.
        last: The node that makes [batch, sequence, heads * width].
    """

    query: Heads
    key: Heads
    value: Heads
    factor: float
    mask: PaddingMask | None
    biases: tuple[Bias, ...]
    last: ir.Node


@dataclasses.dataclass(frozen=True)
class ProjectedAttention:
    """An attention of one tensor, from its projections to the node whose output it takes over."""

    query: Projection
    key: Projection
    value: Projection
    factor: float
    mask: PaddingMask | None
    biases: tuple[Bias, ...]
    last: ir.Node

    @property
    def projections(self) -> tuple[Projection, Projection, Projection]:
        """All three."""
        return self.query, self.key, self.value

    @property
    def products(self) -> tuple[ir.Node, ...]:
        """Their products, each once."""
        return tuple(dict.fromkeys(projection.product for projection in self.projections))

    @property
    def core(self) -> AttentionCore:
        """What is between the projections and the merged heads."""
        query, key, value = map(_heads, self.projections)
        return AttentionCore(query, key, value, self.factor, self.mask, self.biases, self.last)


Attention = ProjectedAttention | AttentionCore


class AttentionFinder:
    """Finds attentions without a past.

    Args:
        model: Whose main graph they are in.

    Attributes:
        terms: What is known of what they add to scores.
    """

    def __init__(self, model: ir.Model) -> None:
        self._opset, self._cases = opset_of(model), encoder_cases(model)
        self.terms = Terms(self._cases)

    def find(self, softmax: ir.Node) -> Attention | str | None:
        """The attention around a softmax, why there is none, or None where it is no attention at all."""
        try:
            product = product_behind(softmax)
        except UnknownError:
            return None
        shape = softmax.outputs[0].shape
        if softmax.attributes.get_int("axis", -1 if self._opset >= 13 else 1) not in (-1, 3) or (
            shape is not None and len(shape) != 4
        ):
            return "softmax over other axes than [batch, heads, queries, keys]"
        read = read_terms(required(softmax.inputs[0]))
        if isinstance(read, str):
            return read
        scores, terms = read
        factor, scores = without_factors(scores)
        dots = scores.producer()
        if not is_standard(dots, "MatMul") or not is_private(scores):
            return "the scores are no product of two activations alone"
        if product.inputs[0] is not softmax.outputs[0]:
            terms = [dataclasses.replace(term, spares_nan=True) for term in terms]
        try:
            return self._projected(dots, product, factor, terms)
        except UnknownError as reason:
            if has_past(softmax) or not self._cases:
                return str(reason)
            if not is_float32(softmax.outputs[0]):
                return "computes on other numbers than float32"
            return self._tried(dots, product, factor, terms, str(reason))

    def _projected(
        self, dots: ir.Node, product: ir.Node, factor: float, terms: Sequence[Bias]
    ) -> ProjectedAttention:  # fmt: skip
        """By the nodes that split and merge heads; raises UnknownError."""
        q, k, v = self._read(*map(required, (dots.inputs[0], dots.inputs[1], product.inputs[1])))
        if not q.x is k.x is v.x:
            raise UnknownError("query, key and value are of different tensors")
        if not q.heads == k.heads == v.heads:
            raise UnknownError("query, key and value differ in heads or width")
        if v.factor != 1.0:
            raise UnknownError("a factor behind the values")
        last = merged_heads(product.outputs[0], q)
        if isinstance(last, str):
            raise UnknownError(last)
        mask, biases = _parted(terms, q.x, self.terms)
        return ProjectedAttention(q, k, v, factor * q.factor * k.factor, mask, biases, last)

    def _read(self, query: ir.Value, key: ir.Value, value: ir.Value) -> list[Projection]:
        """The three projections; raises UnknownError."""
        ways = {"query": (query, _SPLIT), "key": (key, _SPLIT_AND_TURNED), "value": (value, _SPLIT)}
        read = {name: read_projection(*way) for name, way in ways.items()}
        if any(isinstance(each, str) for each in read.values()):
            packed = read_packed(query, key, value, self._opset)
            if isinstance(packed, str):
                raise UnknownError(f"query, key and value: {packed}")
            read = dict(zip(ways, packed, strict=True)) if packed is not None else read
        for name, each in read.items():
            if isinstance(each, str):
                raise UnknownError(f"{name}: {each}")
        return [each for each in read.values() if isinstance(each, Projection)]

    def _tried(
        self, dots: ir.Node, product: ir.Node, factor: float, terms: Sequence[Bias], otherwise: str
    ) -> AttentionCore | str:  # fmt: skip
        """By tries, or why not either way."""
        case = self._cases[0]
        try:
            query, key, value = (
                read_heads(required(heads), case.trial, turned=turned).once()
                for heads, turned in ((dots.inputs[0], False), (dots.inputs[1], True), (product.inputs[1], False))
            )
            if value.factor != 1 or value.rotation is not None:
                raise UnknownError("values are scaled or rotated")
            if not (query.width == key.width == value.width and key.count == value.count):
                raise UnknownError("query, key and value differ in heads or width")
            if query.count % key.count:
                raise UnknownError("heads are shared unevenly")
            sizes = [case.batch, query.count, case.queries, query.width]
            last = merge_behind(product.outputs[0], sizes, case.trial)
            mask, biases = _parted(terms, query.source, self.terms)
        except UnknownError as reason:
            return otherwise if str(reason) == otherwise else f"{otherwise}; by tries: {reason}"
        return AttentionCore(query, key, value, factor * query.factor * key.factor, mask, biases, last)


def _heads(projection: Projection) -> Heads:
    count, width = projection.heads.count, projection.heads.width
    columns = np.arange(count * width) if projection.columns is None else projection.columns
    return Heads(projection.result, columns.reshape(count, width), False, projection.factor, None)


def _parted(terms: Sequence[Bias], x: ir.Value, told: Terms) -> tuple[PaddingMask | None, tuple[Bias, ...]]:
    """The only term as a mask of padding, or else all as biases; raises UnknownError.

    With a bias, padding is a bias as well: it is added once for all layers, while the node would widen it in each.

    Args:
        terms: All.
        x: [batch, ...], what queries are of.
        told: What is known of terms.
    """
    if len(terms) == 1 and terms[0].padding and not _is_one_for_all(terms[0].padding.root, x):
        return terms[0].padding, ()
    known = tuple(term for term in (told.told(term, x) for term in terms) if term is not None)
    if len(known) < len(terms):
        raise UnknownError("what is added to the scores is not known to be [batch, heads, queries, keys]")
    return None, known


def _is_one_for_all(mask: ir.Value, x: ir.Value) -> bool:
    """Whether a mask of one entry serves a batch of several, which the node does not do."""
    batch = x.shape[0] if x.shape is not None and len(x.shape) else None
    return mask.shape is not None and mask.shape[0] == 1 and batch != 1
