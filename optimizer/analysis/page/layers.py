"""What a page tells of a layer: a node, and the weight that it reads."""

from __future__ import annotations

import dataclasses
import math

from ...planning.report import NodeReport, Report, WeightReport
from ...quantization.quantized_weight import decibels


@dataclasses.dataclass(frozen=True)
class Layer:
    """A node and what is known of its weight.

    Attributes:
        node: The node.
        weight: Its rounded weight, where it has one.
        product: Signal to noise ratio of what it computes, in dB, on rows of data that its rounding has not seen; None
            where there were none.
    """

    node: NodeReport
    weight: WeightReport | None
    product: float | None

    @property
    def sqnr(self) -> float | None:
        """Of the weight in dB, where there is a finite one."""
        known = self.weight is not None and math.isfinite(self.weight.sqnr)
        return self.weight.sqnr if known and self.weight is not None else None

    @property
    def stored(self) -> int:
        """Bytes of its weight by now."""
        return self.node.size if self.weight is None else self.weight.stored

    @property
    def note(self) -> str:
        """Why it was left, or what more is to be known of it."""
        if not self.node.taken:
            return self.node.reason
        if self.weight is None:
            return ""
        others = len(self.weight.nodes) - 1
        more = [self.weight.scheme] if self.weight.scheme not in self.node.reason else []
        return "; ".join([*more, *([f"shares its weight with {others} more"] if others else [])])


def layers_of(report: Report) -> list[Layer]:
    """A layer a node, in the order of the graph."""
    weights = {name: weight for weight in report.weights for name in weight.nodes}
    judged = report.details.get("rounded", {})
    layers = []
    for node in report.nodes:
        weight = weights.get(node.name) if node.taken else None
        costs = judged.get(weight.name) if weight is not None else None
        product = decibels(costs["energy"], costs["cost"]) if costs is not None and costs["energy"] > 0 else None
        layers.append(Layer(node, weight, product))
    return layers
