"""The attention of decoders with a past as one node, com.microsoft::GroupQueryAttention.

    y, present = GroupQueryAttention(rotate(q), rotate(k), v, past, sizes, bias; scale = f, softcap = cap)

Rotations are RotaryEmbedding nodes of their own, which read the angles of each token as the model computes them: the
node's own rotation counts the positions of a first prompt by itself, which is wrong for rows that are padded on the
left. For these, and for any other mask, it adds to its scores what the model does; keys behind their query, which
`cached_attention` finds the model to leave out, it leaves out itself.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graph.appending import Appender
from ..graph.cached_attention import CachedAttention, Trials, find_cached_attention, has_past
from ..graph.constants import mark_constants
from ..graph.element_type import is_float32
from ..graph.matching import is_standard, opset_of
from ..graph.rewriting import replace, required, set_names
from ..graph.rotary import Heads
from ..graph.score_mask import LOWEST, Term
from ..graph.trial import UnknownError
from ..graph.weight_form import MICROSOFT
from .base import GraphPass
from .head_writer import HeadWriter
from .merge_equal import MergeEqual
from .remove_unused import remove_unused

OPSET = 13
"""From which Squeeze, Unsqueeze and Split have the form that is written here."""
_WIDTHS = 8  # of which heads are a multiple
_HEADS = 4  # axes of heads, [batch, heads, sequence, width]
_HIDDEN = 3  # axes of hidden states, [batch, sequence, columns]
_FAR = 8  # beyond the axes of any tensor here

Tokens = tuple[ir.Value, int]


class FuseCachedAttention(GraphPass):
    """Fuse every attention with a past of the main graph that is wholly understood.

    Cases: heads of products of their own, of one for all, in any order of its columns, or behind norms; rotated
    wholly, in part, by halves or neighbours, or not; shared by groups of heads; any masks that leave out what is
    behind a query, and what distances cost each head; a cap on the scores; products of [batch * heads, ..]. Left with
    a reason: other types than float32, masks that show later keys, keys that others read, and what does not turn out to
    be an attention when it is tried.

    Attributes:
        fused: The new nodes.
        left: The softmax of each attention with a past that stays, by name, and why.
    """

    def __init__(self) -> None:
        self.fused: list[ir.Node] = []

    @staticmethod
    def is_for(model: ir.Model) -> bool:
        """Whether a model has an attention with a past."""
        mark_constants(model)
        return any(is_standard(node, "Softmax") and has_past(node) for node in model.graph)

    def rewrite(self, model: ir.Model) -> bool:
        """Fuse; whether anything changed."""
        mark_constants(model)
        self._graph, opset = model.graph, opset_of(model)
        self._write = Appender(model.graph, "cached_attention/")
        self._heads = HeadWriter(model.graph, self._write)
        self._made: dict[tuple[object, ...], ir.Value] = {}
        trials = Trials(model, opset)
        for node in [node for node in model.graph if is_standard(node, "Softmax") and has_past(node)]:
            reason = f"opset {opset} is older than {OPSET}" if opset < OPSET else None
            if reason is None and not is_float32(node.outputs[0]):
                reason = "computes on other numbers than float32"
            try:
                if reason is None:
                    found = find_cached_attention(node, trials)
                    reason = _refuse(found)
            except UnknownError as unknown:
                reason = str(unknown)
            if reason is None:
                self._fuse(found)
            else:
                self.left[node.name or ""] = reason
        if self.fused:
            model.graph.opset_imports.setdefault(MICROSOFT, 1)
            model.graph.sort()
            MergeEqual()(model)  # what each layer adds to its scores
            remove_unused(model)
        return bool(self.fused)

    def _fuse(self, found: CachedAttention) -> None:
        last, past = found.last, found.past[0]
        self._mask = found.mask.root  # layers of the same mask have the same sizes, or it would fit none of them
        tokens = self._tokens(found)
        query, key, value = self._heads.written(last, (found.query, found.key, found.value), past, self._mask)
        inputs = [query, key, value, *found.past, self._lengths(past, tokens), self._total(past, tokens),
                  None, None, None, self._bias(found)]  # fmt: skip
        attributes: dict[str, int | float] = {
            "num_heads": found.query.count, "kv_num_heads": found.key.count, "scale": found.factor,
        }  # fmt: skip
        if found.cap:
            attributes["softcap"] = found.cap
        node = ir.node("GroupQueryAttention", inputs, attributes=attributes, domain=MICROSOFT, num_outputs=3)
        name = f"{last.name}_GroupQueryAttention"
        set_names(node, self._graph, name, *(f"{name}_{part}" for part in ("output", "key", "value")))
        self._graph.insert_before(last, node)
        for output, like in zip(node.outputs, (last.outputs[0], *found.present), strict=True):
            output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), like.shape
        shape, columns = tokens[0].shape, found.query.count * found.query.width
        lead = shape[:2] if shape is not None and tokens[1] == 1 else (None, None)
        node.outputs[0].shape = ir.Shape([*lead, columns])
        replace(last, node.outputs[0])
        if _axes(found.read) == _HEADS and _axes(tokens[0]) == _HIDDEN:  # else they may depend on these
            self._keep_sizes(found.read, past, self._new(tokens), found.query)
        for output, present in zip(node.outputs[1:], found.present, strict=True):
            self._keep_sizes(present, past, self._length(past, tokens), found.key)
            replace(required(present.producer()), output)
        self.fused.append(node)

    @staticmethod
    def _tokens(found: CachedAttention) -> Tokens:
        """What has an axis of new tokens, and which: hidden states, or heads where all are of something between."""
        every = (found.value, found.key, found.query)
        heads = next((heads for heads in every if not heads.heads_first), found.value)
        return heads.source, 2 if heads.heads_first else 1

    def _keep_sizes(self, value: ir.Value, past: ir.Value, length: ir.Value, heads: Heads) -> None:
        """Let who asks for the sizes of heads, of so many queries or keys, have them without these."""
        for each in [each for each, _ in value.uses() if each.op_type == "Shape"]:
            count, width = (self._write.ints(number) for number in (heads.count, heads.width))
            lengths = self._write.op("Unsqueeze", length, self._write.ints(0))
            sizes = self._write.op("Concat", self._batch(past), count, lengths, width, axis=0)
            end = each.attributes.get_int("end", 4)
            if each.attributes.get_int("start", 0) or end != 4:
                sizes = self._slice(sizes, each.attributes.get_int("start", 0), end)
            ir.convenience.replace_all_uses_with(each.outputs[0], sizes)

    def _batch(self, past: ir.Value) -> ir.Value:
        """int64 [1]: rows."""
        key = ("batch", self._mask)
        if key not in self._made:
            self._made[key] = self._slice(self._shape(past), 0, 1)
        return self._made[key]

    def _new(self, tokens: Tokens) -> ir.Value:
        """int64 []: how many queries there are."""
        key = ("new", self._mask)
        if key not in self._made:
            self._made[key] = self._size(*tokens)
        return self._made[key]

    def _length(self, past: ir.Value, tokens: Tokens) -> ir.Value:
        """int64 []: how many keys there are."""
        key = ("length", self._mask)
        if key not in self._made:
            self._made[key] = self._write.op("Add", self._size(past, 2), self._new(tokens))
        return self._made[key]

    def _total(self, past: ir.Value, tokens: Tokens) -> ir.Value:
        """int32 []: the same."""
        key = ("total", self._mask)
        if key not in self._made:
            self._made[key] = self._write.cast(self._length(past, tokens), ir.DataType.INT32)
        return self._made[key]

    def _lengths(self, past: ir.Value, tokens: Tokens) -> ir.Value:
        """int32 [batch]: the number of the last key.

        One at least: ONNX Runtime divides by a batch of 0, and refuses numbers of another batch before that.
        """
        key = ("lengths", self._mask)
        if key not in self._made:
            length = self._write.op("Sub", self._length(past, tokens), self._write.number(1, np.int64))
            batch = self._write.op("Max", self._batch(past), self._write.ints(1))
            self._made[key] = self._write.cast(self._write.op("Expand", length, batch), ir.DataType.INT32)
        return self._made[key]

    def _bias(self, found: CachedAttention) -> ir.Value:
        """float32 [batch or 1, heads or 1, queries, keys], finite: rows that see nothing must not become NaN."""
        terms = found.mask.terms
        key = ("bias", terms)
        if key not in self._made:
            made = None
            for term in terms:
                made = self._added(made, term, found)
            if not all(term.is_choice for term in terms):
                made = self._write.op("Max", required(made), self._write.number(LOWEST))
            self._made[key] = required(made)
        return self._made[key]

    def _added(self, before: ir.Value | None, term: Term, found: CachedAttention) -> ir.Value:
        """The sum with one term more."""
        root = self._with_heads(term.root, found) if term.flat else term.root
        if not term.is_choice:
            if term.factor != 1:
                root = self._write.op("Mul", root, self._write.number(term.factor))
            return root if before is None else self._write.op("Add", before, root)
        kept, fill = self._write.number(term.kept), self._write.number(max(term.fill, LOWEST))
        if before is not None:
            kept = before if term.kept == 0 else self._write.op("Add", before, kept)
        pair = (kept, fill) if term.counts else (fill, kept)
        return self._write.op("Where", root, *pair, dtype=ir.DataType.FLOAT)

    def _with_heads(self, root: ir.Value, found: CachedAttention) -> ir.Value:
        """[batch, heads, ..] of a tensor [batch * heads, ..]."""
        rest = self._slice(self._shape(root), 1, _FAR)
        sizes = self._write.op("Concat", self._batch(found.past[0]), self._write.ints(found.query.count), rest, axis=0)
        return self._write.op("Reshape", root, sizes)

    def _slice(self, value: ir.Value, begin: int, end: int) -> ir.Value:
        return self._write.op("Slice", value, self._write.ints(begin), self._write.ints(end))

    def _size(self, value: ir.Value, axis: int) -> ir.Value:
        return self._write.op("Gather", self._shape(value), self._write.number(axis, np.int64), axis=0)

    def _shape(self, value: ir.Value) -> ir.Value:
        return self._write.op("Shape", value, dtype=ir.DataType.INT64)


def _refuse(found: CachedAttention) -> str | None:
    """Why ONNX Runtime's operator cannot compute an attention; None where it can."""
    if found.query.width % _WIDTHS:
        return f"heads of {found.query.width} numbers, which is no multiple of {_WIDTHS}"
    return None if found.factor > 0 else "scores are multiplied by no positive number"


def _axes(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)
