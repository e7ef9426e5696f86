"""Root mean square normalization that exporters write out becomes the operator that ONNX Runtime has for it.

    y = x / sqrt(mean(x^2) + epsilon) scale        (Zhang and Sennrich, 2019, arXiv:1910.07467)

over the last axis, see `graph.written_rms_norms`. The operator is ONNX Runtime's SimplifiedLayerNormalization, which it
has in the standard domain.
"""

from __future__ import annotations

import onnx_ir as ir

from ..graph.constants import mark_constants
from ..graph.matching import RMS_NORM, is_standard
from ..graph.rewriting import insert_before, replace, required, take_over_name
from ..graph.written_rms_norms import find_written_rms_norm
from .base import GraphPass
from .remove_unused import remove_unused


class RecogniseRmsNorms(GraphPass):
    """Write each normalization by the root mean square over the last axis of float32 as one node.

    Cases: see the module; a scale that is a constant of one axis. Left alone: others, and where what is between is
    read elsewhere. Only the main graph is changed.

    Attributes:
        made: The new nodes.
    """

    def __init__(self) -> None:
        self.made: list[ir.Node] = []

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite; whether anything changed."""
        mark_constants(model)
        for node in list(model.graph):
            found = find_written_rms_norm(node) if is_standard(node, "Sqrt") else None
            if found is None:
                continue
            y = insert_before(
                found.last, RMS_NORM, [found.x, found.scale], found.last.outputs[0],
                suffix="_norm", attributes={"axis": -1, "epsilon": found.epsilon, "stash_type": 1},
            )  # fmt: skip
            made = required(y.producer())
            take_over_name(made, found.last)
            if found.x.shape is not None and not found.last.outputs[0].is_graph_output():
                y.shape = found.x.shape
            replace(found.last, y)
            self.made.append(made)
        if self.made:
            remove_unused(model)
        return bool(self.made)
