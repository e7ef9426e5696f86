"""AveragePool in forms that mean the same to ONNX Runtime's kernel on codes, or that it leaves in float.

It makes QLinearAveragePool of every AveragePool between DequantizeLinear and QuantizeLinear, whether we round what the
pool makes or not. That operator has no dilations, with which the model cannot be loaded, and where ceil_mode and
count_include_pad meet it counts cells beyond the padding, too. So these pools get a node behind them that it leaves.
"""

from __future__ import annotations

import onnx_ir as ir

from .int8_operators import needs_float
from .matching import is_standard
from .rewriting import required


class PlainAveragePool:
    """Rewrite AveragePools of the main graph, of opset 11 at least.

    Cases: dilations of one, and count_include_pad without pads (left out); other dilations, and ceil_mode with
    count_include_pad (a Max of one tensor behind, which ONNX Runtime runs as it is: the QuantizeLinear reads that).
    """

    def __call__(self, model: ir.Model) -> bool:
        """Rewrite; whether anything changed."""
        pools = [node for node in model.graph if is_standard(node, "AveragePool")]
        changed = sum(map(_simplify, pools)) > 0
        return sum(_set_apart(node) for node in pools if needs_float(node)) > 0 or changed


def _simplify(node: ir.Node) -> bool:
    """Leave out attributes that say nothing; whether there were any."""
    attributes, count = node.attributes, len(node.attributes)
    if all(step == 1 for step in attributes.get_ints("dilations", [])):
        attributes.pop("dilations", None)
    automatic = attributes.get_string("auto_pad", "NOTSET")
    if automatic == "VALID" or (automatic == "NOTSET" and not any(attributes.get_ints("pads", []))):
        attributes.pop("count_include_pad", None)
    return len(attributes) < count


def _set_apart(node: ir.Node) -> bool:
    result = node.outputs[0]
    if {reader.op_type for reader, _ in result.uses()} == {"Max"}:
        return False
    pooled = ir.node("Max", [result], name=f"{node.name}_float")
    pooled.outputs[0].type, pooled.outputs[0].shape = result.type, result.shape
    ir.convenience.replace_all_uses_with(result, pooled.outputs[0], replace_graph_outputs=True)
    pooled.replace_input_with(0, result)
    pooled.outputs[0].name, result.name = result.name, f"{result.name}_float"
    required(node.graph).insert_after(node, pooled)
    return True
