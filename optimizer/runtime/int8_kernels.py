"""What ONNX Runtime makes of a QDQ model: which products really run on codes of 8 bits.

Its optimizer turns `DequantizeLinear, op, QuantizeLinear` into one node where every condition of its rules holds, and
else silently computes in float between two conversions. So the optimized graph is asked, not the rules.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import onnx_ir as ir

from ..model_io import reading
from .session import open_session, session_options
from .temporary import written

INT8 = frozenset({
    "QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
    "QGemm", "QAttention", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearAveragePool",
    "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax",
})  # fmt: skip
"""Operators on codes that ONNX Runtime's CPU has."""

_MADE = re.compile(r"_token_\d+$|/MatMulAddFusion$")  # what ONNX Runtime adds to the name of a node that it made


def optimized(model: ir.Model) -> ir.Model:
    """The graph that ONNX Runtime runs, with its CPU's kernels.

    Raises:
        OnnxpressError: ONNX Runtime refuses the model.
    """
    with written(model) as source:
        target = source.with_name("optimized.onnx")
        options = session_options()
        options.optimized_model_filepath = str(target)
        open_session(source, options, model.graph.name)
        return reading.load(target)


def operators(model: ir.Model) -> dict[str, int]:
    """Nodes of an optimized graph by operator, the most frequent first."""
    return dict(Counter(node.op_type for node in model.graph).most_common())


def fallbacks(model: ir.Model, names: Iterable[str]) -> dict[str, str]:
    """Which of the nodes of these names an optimized graph does not compute on codes, and what it has instead."""
    found: dict[str, str] = {}
    for node in model.graph:
        name = _MADE.sub("", node.name or "")
        if node.op_type in INT8 or name not in found:
            found[name] = node.op_type
    return {name: found.get(name, "nothing of its name") for name in names if found.get(name) not in INT8}
