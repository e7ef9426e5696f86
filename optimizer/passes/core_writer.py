"""The inner part of an attention as ONNX Runtime's MultiHeadAttention, and what attentions of encoders share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ..graph.appending import Appender
from ..graph.encoder_attention import Attention, AttentionCore
from ..graph.rewriting import insert_before, replace, required
from ..graph.score_terms import Terms
from ..graph.weight_form import MICROSOFT
from ..model_io.names import names_of
from .attention_inputs import AttentionInputs
from .head_writer import HeadWriter


class CoreWriter:
    """Writes nodes in place of attentions; the graph is to be put in order when all are there.

    Args:
        graph: The main graph.
        terms: What is known of what is added to scores.
    """

    def __init__(self, graph: ir.Graph, terms: Terms) -> None:
        write = Appender(graph, "attention/")
        self._graph, self._heads = graph, HeadWriter(graph, write)
        self._inputs = AttentionInputs(graph, terms, write)

    def write(self, found: AttentionCore) -> ir.Node:
        """The MultiHeadAttention, which reads heads as their products make them, cut and rotated where it must be."""
        every = (found.query, found.key, found.value)
        query, key, value = self._heads.written(found.last, every, found.query.source, found.query.source)
        key, value = (self._heads.repeated(found.last, x, found.key, found.query.count) for x in (key, value))
        bias = self._inputs.bias(found.biases, query, key) if found.biases else None
        attributes = {"num_heads": found.query.count, "scale": found.factor}
        node = self.put(found, "MultiHeadAttention", [query, key, value, None], attributes, bias)
        node.name = names_of(self._graph).node(f"{found.last.name}_MultiHeadAttention")
        return node

    def put(
        self, found: Attention, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, int | float],
        bias: ir.Value | None = None,
    ) -> ir.Node:  # fmt: skip
        """The node that takes over the output of an attention.

        Args:
            found: The attention.
            op_type: The operator.
            inputs: What it reads ahead of the mask of padding.
            attributes: Of it, but for what the mask says.
            bias: What it reads behind the mask.
        """
        mask, last = found.mask, found.last
        every = [*inputs, None if mask is None else self._inputs.padding(mask), bias]
        while every[-1] is None:
            every.pop()
        filled = {} if mask is None else {"mask_filter_value": mask.filter_value}
        y = insert_before(
            last, op_type, every, last.outputs[0], domain=MICROSOFT, suffix="", attributes={**attributes, **filled}
        )  # fmt: skip
        replace(last, y)
        return required(y.producer())
