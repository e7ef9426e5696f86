"""What builders of networks share: weights by name, and nodes named after their modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxpress.optimizer.errors import OnnxpressError
from onnxscript import nn


def load_weights(network: nn.Module, weights: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Give each parameter of a network the float32 tensor of its name.

    Raises:
        OnnxpressError: One is missing or has another shape or type.
    """
    for name, parameter in network.named_parameters():
        if name not in weights:
            raise OnnxpressError(f"the checkpoint has no tensor '{name}'")
        array, expected = weights[name], parameter.shape
        if expected is None or tuple(expected) != array.shape or array.dtype != np.float32:
            raise OnnxpressError(f"the checkpoint's '{name}' is {array.dtype} {array.shape}, not float32 {expected}")
        parameter.const_value = ir.tensor(np.ascontiguousarray(array), name=name)


def name_nodes(graph: ir.Graph) -> None:
    """Name nodes and their outputs after the modules, as exporters do, and drop the builder's notes."""
    seen: Counter[str] = Counter()
    for node in graph:
        scope = (node.name or "").rpartition("/")[0]
        name = f"/{scope}/{node.op_type}" if scope else f"/{node.op_type}"
        number = seen[name]
        seen[name] += 1
        node.name = f"{name}_{number}" if number else name
        for index, value in enumerate(node.outputs):
            value.name = f"{node.name}_output_{index}"
        node.metadata_props.clear()
