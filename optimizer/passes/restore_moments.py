"""Channels of a QDQ model get the mean and deviation back that they have in float.

Rounding changes both, layer by layer. A BatchNormalization could measure them anew, but by now it is folded into the
Conv before it, y = s_w W * x + b with W codes. So it is the scales of the weight and the bias that take the map
y' = f y + g of `quantization.moments`:

    s_w' = f s_w,   b' = f b + g.

The codes of the weight stay as they are, and so do the operators that ONNX Runtime makes of the group. What is
compared is the result of the Conv, before a Relu or Clip that saturation replaces. A layer must be mended before
those behind it are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence

import onnx_ir as ir

from ..graph.matching import is_standard, values_read
from ..graph.products_on_codes import read_product
from ..graph.rewriting import float_name
from ..quantization.moments import ChannelMoments, restoring_map
from .base import GraphPass

Measure = Callable[[ir.Model, Sequence[str]], Mapping[str, ChannelMoments]]
"""(model, names of values) -> their moments along the channels, axis 1, on the calibration data."""

_UNKNOWN = "no moments"


class RestoreMoments(GraphPass):
    """Mend the Conv and Gemm nodes of a QDQ model, in the order of the graph, each measured with all before it mended.

    Cases: a weight with a scale a channel, scales and bias; one scale in all, the bias alone; a Conv without bias
    gets one. Left: weights that are no codes, nodes without moments, biases that would not fit. Graphs inside nodes
    stay as they are: what flows there cannot be observed.
    """

    def __init__(self, reference: Mapping[str, ChannelMoments], measure: Measure) -> None:
        """Prepare the rewrite.

        Args:
            reference: Moments of the float model along the channels, by the name of the value.
            measure: Gives moments of values of a model, on the same data. Called once for all nodes of one depth.
        """
        self._reference, self._measure = reference, measure

    def rewrite(self, model: ir.Model) -> bool:
        """Mend; whether anything changed."""
        goals = mendable(model, self._reference)
        for node in model.graph:
            if node not in goals and is_standard(node, "Conv", "Gemm"):
                product = read_product(node)
                self.left[node.name or node.op_type] = product if isinstance(product, str) else _UNKNOWN
        changed = False
        for group in depths_of(model.graph, goals):
            measured = self._measure(model, [node.outputs[0].name or "" for node in group])
            for node in group:
                reason = self._mend(model.graph, node, measured)
                if reason is None:
                    changed = True
                else:
                    self.left[node.name or node.op_type] = reason
        return changed

    def _mend(self, graph: ir.Graph, node: ir.Node, measured: Mapping[str, ChannelMoments]) -> str | None:
        product = read_product(node)
        if isinstance(product, str):
            return product
        output = node.outputs[0]
        want, have = self._reference.get(float_name(output)), measured.get(output.name or "")
        if want is None or have is None:
            return _UNKNOWN
        maps = [restoring_map(want, have, mean_alone=alone) for alone in (True, False)[: 1 + product.has_channels]]
        sound = [found for found in maps if found is not None and len(found[0]) == product.channels]
        if not sound:
            return "the moments are not finite numbers, one a channel"
        return product.apply(graph, sound)


def mendable(model: ir.Model, known: Container[str]) -> list[ir.Node]:
    """The nodes of a QDQ model that can be mended, in the order of the graph.

    Args:
        model: The model.
        known: Names of values of the float model whose moments are known.
    """
    return [
        node for node in model.graph if not isinstance(read_product(node), str) and float_name(node.outputs[0]) in known
    ]


def depths_of(graph: ir.Graph, nodes: Sequence[ir.Node]) -> list[list[ir.Node]]:
    """Nodes in groups, by how many of them lie before each, at most, on a way through the graph."""
    chosen, behind = set(nodes), dict[ir.Node, int]()
    for node in graph:
        producers = [value.producer() for value in values_read(node)]
        reach = max((behind.get(producer, 0) for producer in producers if producer is not None), default=0)
        behind[node] = reach + (node in chosen)
    return [[node for node in nodes if behind[node] == depth] for depth in sorted({behind[node] for node in nodes})]
