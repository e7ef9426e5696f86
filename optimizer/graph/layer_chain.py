"""The layers of an encoder one behind the other, whatever form each has by now."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import onnx_ir as ir
from onnxpress.custom_ops.functions.encoder_layer import INPUTS

from .encoder_layer import find_layer
from .matching import input_of
from .rewriting import required

_ATTENTION_MASK = 3
_LAYER_MASK = INPUTS.index("mask")


@dataclasses.dataclass(frozen=True)
class Link:
    """A layer.

    Attributes:
        node: Its com.microsoft::Attention, or the onnxpress::EncoderLayer that it is as a whole.
        x: What it reads, [batch, tokens, H].
        y: What it makes, of the same shape.
        readers: The nodes of it that read x.
    """

    node: ir.Node
    x: ir.Value
    y: ir.Value
    readers: tuple[ir.Node, ...]

    @property
    def is_whole(self) -> bool:
        """Whether it is one node."""
        return self.node.op_type == "EncoderLayer"

    @property
    def mask_index(self) -> int:
        """Which input of the node is its mask."""
        return _LAYER_MASK if self.is_whole else _ATTENTION_MASK

    @property
    def mask(self) -> ir.Value | None:
        """int32 [batch, tokens], 1 where a token counts; None where all do."""
        return input_of(self.node, self.mask_index)


def chain_of(nodes: Sequence[ir.Node]) -> list[Link] | str:
    """The layers of these nodes in order, each of which reads what the one before makes; why they are none otherwise.

    Args:
        nodes: Nodes as in `Link`, in the order of the graph.
    """
    links = []
    for node in nodes:
        link = _link(node)
        if isinstance(link, str):
            return f"{node.name}: {link}"
        links.append(link)
    for before, link in itertools.pairwise(links):
        if link.x is not before.y:
            return f"{link.node.name}: the layer does not read what the one of {before.node.name} makes"
        if link.mask is not before.mask:
            return f"{link.node.name}: the layer has another mask than the one of {before.node.name}"
    return links


def _link(node: ir.Node) -> Link | str:
    if node.op_type == "EncoderLayer":
        return Link(node, required(node.inputs[0]), node.outputs[0], (node,))
    found = find_layer(node)
    if isinstance(found, str):
        return found
    total, first = (found.norm2.x, found.norm1.node) if found.norm_first else (found.norm1.x, node)
    return Link(node, found.x, found.last.outputs[0], (first, required(total.producer())))
