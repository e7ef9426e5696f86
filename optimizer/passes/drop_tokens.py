"""Tokens that matter little leave an encoder on the way, and come back at its end.

After a layer the tokens go on to which most attention was paid in it (PoWER-BERT, Goyal et al., 2020,
arXiv:2001.08950, eq. 1), the mask goes with them, and what reads the last layer finds all tokens, those that left by
`restore_tokens`. A trained model needs no further training for it.

    n = tokens of the text,  k = min(k of the layer before, n, max(ceil(share n), number))
    kept  = the k of greatest significance: the first of the text, then the others, then padding

A share is of the text's own tokens, so rows of a batch keep different numbers; the tensor is as long as the most. The
first token that counts always stays, and by a share `LEAST` do.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..errors import OnnxpressError, option
from ..graph.appending import Appender
from ..graph.layer_chain import Link, chain_of
from ..graph.rewriting import add_array, required
from ..model_io.names import names_of
from ..settings.lengths import LEAST, PARTS, parts_of
from .base import GraphPass
from .restore_tokens import LeftTokens
from .write_attention import Counted, counted, write_attention

INPUT = "lengths"
"""Name of the input of lengths."""
_RULE = "lengths must be shares from 0.0001 to 1 or whole numbers from 2 on, none above the one before"
_MOST = 2**31
"""Tokens; more are no number of them, nor is infinity."""
_FIRST = 3e38
"""Significance of the token that stays."""
_INT64, _BOOL = ir.DataType.INT64, ir.DataType.BOOL


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """Those that a layer reads and makes.

    Attributes:
        mask: int32 [batch, tokens], 1 where one counts; None where all do.
        counts: The same as bool.
        first: bool [batch, tokens] or [tokens], which one stays.
        kept: int64 [batch, 1], how many of them count; None where nothing was dropped yet.
        place: int64 [batch, tokens], where each was in the input; None likewise.
    """

    mask: ir.Value | None
    counts: ir.Value | None
    first: ir.Value
    kept: ir.Value | None = None
    place: ir.Value | None = None


class DropTokens(GraphPass):
    """Let layers of an encoder hand on some of their tokens.

    Cases: layers that are one operator, with an output of significance; layers around an Attention of constant weights,
    which becomes standard operators where they drop; with a mask of padding or without. Whoever else reads a layer
    finds all tokens.

    Args:
        lengths: What each layer but the last hands on, as `lengths_of` gives them; all where there are no more.
        nodes: The layers of the main graph in order, as in `chain_of`.
        is_input: Make the lengths an input of the graph, with these as default.

    Attributes:
        products: The product in each attention that was written out, by what the attention was.

    Raises:
        OnnxpressError: As `dropping_of`.
    """

    def __init__(self, lengths: Sequence[float], nodes: Sequence[ir.Node], is_input: bool = False) -> None:
        self._lengths, self._nodes, self._is_input = tuple(lengths), nodes, is_input
        self.products: dict[ir.Node, ir.Node] = {}

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite; whether anything changed."""
        dropping = set(dropping_of(self._nodes, self._lengths, self._is_input))
        if not dropping:
            return False
        self._graph, self._write = model.graph, Appender(model.graph, "drop_tokens/")
        self._masks: dict[ir.Value, Counted] = {}
        self._handed_on: list[ir.Value] = []
        links = _links(self._nodes)
        begin = next(index for index, link in enumerate(links) if link.node in dropping)
        tokens, count = self._all_tokens(links[begin])
        keep = self._keep(count, len(links) - 1)
        self._left = LeftTokens(self._write, links[begin].y)
        for index, (link, following) in enumerate(itertools.zip_longest(links[begin:], links[begin + 1 :]), begin):
            if self._left and tokens.mask is not None:
                link.node.replace_input_with(link.mask_index, tokens.mask)
            within = following.readers if following is not None else ()
            others = [use for use in link.y.uses() if use.node not in within]
            if self._left:
                self._restore(link.y, others)
            if link.node in dropping:
                column = self._write.op("Gather", keep, self._write.ints(index), axis=1)
                significance = self._significance(link, tokens.mask)
                tokens, x = self._drop(link.y, tokens, significance, column)
                for node in within:
                    _read(node, link.y, x)
        self._forget_sizes()
        model.graph.sort()
        return True

    def _all_tokens(self, link: Link) -> tuple[_Tokens, ir.Value]:
        """Those of the input, and how many count, int64 [batch, 1], or [1, 1] where all do."""
        write, mask = self._write, link.mask
        length = write.size(link.y, 1)
        places = write.range(length)
        if mask is None:
            first, counts = write.op("Equal", places, write.ints(0), dtype=_BOOL), None
            count = write.op("Unsqueeze", length, write.ints(0))
        else:
            counts = write.cast(mask, _BOOL)
            count = write.op("ReduceSum", write.cast(mask, _INT64), write.ints(1), keepdims=1)
            so_far = write.op("CumSum", write.cast(mask, _INT64), write.number(1, np.int64))
            first = write.op("And", counts, write.op("Equal", so_far, write.ints(1), dtype=_BOOL))
        return _Tokens(mask, counts, first), count

    def _keep(self, count: ir.Value, layers: int) -> ir.Value:
        """How many tokens each layer hands on, int64 [batch, layers], of how many there are."""
        write = self._write
        if self._is_input:
            shares, numbers = self._read_lengths(layers)
        else:
            parts = [parts_of(length) for length in (*self._lengths, *[1.0] * layers)[:layers]]
            shares, numbers = (write.ints(*each) for each in zip(*parts, strict=True))
        above = write.op("Add", write.op("Mul", count, shares), write.ints(PARTS - 1))
        wanted = write.op("Max", write.op("Div", above, write.ints(PARTS)), numbers)
        return write.op("Min", count, wanted)

    def _read_lengths(self, layers: int) -> tuple[ir.Value, ir.Value]:
        """`parts_of` an input of the graph."""
        write, default = self._write, (*self._lengths, *[1.0] * layers)[:layers]
        given = add_array(self._graph, INPUT, np.array(default, np.float32))
        self._graph.inputs.append(given)
        lengths = self._checked(given, layers)
        is_share = write.op("LessOrEqual", lengths, write.number(1), dtype=_BOOL)
        parts = write.op("Round", write.op("Mul", lengths, write.number(PARTS)))
        shares = write.cast(write.op("Where", is_share, parts, write.number(0), dtype=lengths.dtype), _INT64)
        numbers = write.cast(write.op("Where", is_share, write.number(LEAST), lengths, dtype=lengths.dtype), _INT64)
        return shares, write.op("Max", numbers, write.ints(1))

    def _checked(self, lengths: ir.Value, layers: int) -> ir.Value:
        """The same lengths, by a Gather that fails where one is none, or grows: the message has the node's name."""
        write = self._write

        def both(op_type: str, a: ir.Value, b: ir.Value) -> ir.Value:
            return write.op(op_type, a, b, dtype=_BOOL)

        before = write.op("Gather", lengths, write.ints(0, *range(layers - 1)), axis=0)
        one = write.number(1)
        share, share_before = (both("LessOrEqual", each, one) for each in (lengths, before))
        is_whole = both("Equal", lengths, write.op("Floor", lengths))
        is_number = both("And", is_whole, both("LessOrEqual", lengths, write.number(_MOST)))
        enough = both("GreaterOrEqual", lengths, write.number(1 / PARTS))
        falls = both("Or", both("Xor", share, share_before), both("LessOrEqual", lengths, before))
        right = both("And", both("And", enough, both("Or", share, is_number)), falls)
        place = write.op("Where", right, write.ints(*range(layers)), write.ints(layers), dtype=_INT64)
        checked = write.op("Gather", lengths, place, axis=0)
        required(checked.producer()).name = names_of(self._graph).node(_RULE)
        return checked

    def _significance(self, link: Link, mask: ir.Value | None) -> ir.Value:
        """float32 [batch, tokens]."""
        if link.is_whole:
            return link.node.outputs[1]
        if mask is not None and mask not in self._masks:
            filter_value = link.node.attributes.get_float("mask_filter_value", -10000.0)
            self._masks[mask] = counted(self._write, mask, filter_value)
        marks = self._masks[mask] if mask is not None else None
        self.products[link.node], significance = write_attention(self._write, link.node, marks)
        return significance

    def _drop(self, y: ir.Value, tokens: _Tokens, significance: ir.Value, column: ir.Value) -> tuple[_Tokens, ir.Value]:
        """The tokens that a layer hands on, and their rows.

        Args:
            y: What the layer makes.
            tokens: Those of the layer.
            significance: Of each.
            column: How many are wanted, int64 [batch, 1].
        """
        write = self._write
        kept = column if tokens.kept is None else write.op("Min", tokens.kept, column)
        valid = write.op("GreaterOrEqual", significance, write.number(0), dtype=_BOOL)  # NaN would not sort
        valid = valid if tokens.counts is None else write.op("And", tokens.counts, valid)
        order = write.op("Where", valid, significance, write.number(-1), dtype=ir.DataType.FLOAT)
        order = write.op("Where", tokens.first, write.number(_FIRST), order, dtype=ir.DataType.FLOAT)
        # One more entry: of no rows there is no maximum.
        counts = write.op("Concat", write.op("Reshape", kept, write.ints(-1)), write.ints(1), axis=0)
        length = write.size(y, 1)
        most = write.op("Min", write.op("ReduceMax", counts, keepdims=1), length)
        # And one more row: ONNX Runtime up to 1.23 divides by their number.
        row = write.op("Expand", write.number(0), write.op("Concat", write.ints(1), length, axis=0))
        order = write.op("Concat", order, row, axis=0)
        top = write.op("TopK", order, most, outputs=2, index=1, dtype=_INT64, axis=1)
        top = write.op("Slice", top, write.ints(0), write.ints(-1), write.ints(0))
        place = top if tokens.place is None else write.op("GatherElements", tokens.place, top, axis=1)
        x = write.op("GatherND", y, write.op("Unsqueeze", top, write.ints(2)), batch_dims=1, shape=_rows_like(y))
        slots = write.range(most)
        inside = write.op("Less", slots, kept, dtype=_BOOL)
        self._left.leave(y, x, place, inside, kept)
        self._handed_on.append(x)
        first = write.op("Equal", slots, write.ints(0), dtype=_BOOL)
        if tokens.mask is None:
            return _Tokens(None, None, first, kept, place), x
        mask = write.cast(inside, ir.DataType.INT32)
        mask.shape = ir.Shape([None, None])
        return _Tokens(mask, inside, first, kept, place), x

    def _restore(self, y: ir.Value, others: Sequence[Any]) -> None:
        """Let readers of what a layer makes, and outputs of the graph, find all tokens."""
        places = [index for index, value in enumerate(self._graph.outputs) if value is y]
        if not others and not places:
            return
        whole = self._left.whole(y)
        for node, index in others:
            node.replace_input_with(index, whole)
        if places:
            names = names_of(self._graph)
            names.release(whole.name)
            y.name, whole.name = names.value(f"{y.name}_kept"), y.name
        for index in places:
            self._graph.outputs[index] = whole

    def _forget_sizes(self) -> None:
        """Of what layers make of fewer tokens; the size of a token is known still."""
        seen, new, waiting = set(), set(self._write.made), list(self._handed_on)
        while waiting:
            for node, _ in waiting.pop().uses():
                if node in new or node in seen:
                    continue
                seen.add(node)
                for value in node.outputs:
                    value.shape = _rows_like(value)
                    waiting.append(value)


def dropping_of(nodes: Sequence[ir.Node], lengths: Sequence[float], is_input: bool = False) -> list[ir.Node]:
    """Which of the layers hand on fewer tokens than they read.

    Args:
        nodes: As in `chain_of`.
        lengths: What each layer but the last hands on, as `lengths_of` gives them; all where there are no more.
        is_input: Whether they may be others when the model runs.

    Raises:
        OnnxpressError: There are no layers one behind the other, or more lengths than they have use for.
    """
    layers = len(_links(nodes)) - 1
    if len(lengths) > layers:
        raise OnnxpressError(
            f"{option('lengths')}: {len(lengths)} of them, but the model has {layers + 1} layers: after the last one "
            f"nothing reads tokens; give {layers} at most"
        )
    if is_input:
        return list(nodes[:layers])
    before = (1.0, *lengths)
    return [node for node, last, length in zip(nodes, before, lengths, strict=False) if length != last]


def _links(nodes: Sequence[ir.Node]) -> list[Link]:
    if len(nodes) < 2:
        raise OnnxpressError(f"dropping tokens needs two layers of an encoder, of which there are {len(nodes)}")
    links = chain_of(nodes)
    if isinstance(links, str):
        raise OnnxpressError(f"dropping tokens needs layers of an encoder one behind the other: {links}")
    return links


def _read(node: ir.Node, old: ir.Value, new: ir.Value) -> None:
    for index, value in enumerate(node.inputs):
        if value is old:
            node.replace_input_with(index, new)


def _rows_like(value: ir.Value) -> ir.Shape | None:
    """A shape of which only the last axis is known."""
    if value.shape is None or not len(value.shape):
        return None
    return ir.Shape([*[None] * (len(value.shape) - 1), value.shape[-1]])
