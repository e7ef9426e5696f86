"""The convolutional networks that the package `onnx` brings for its tests, with random weights: for timing only.

In those files a weight is a node ConstantOfShape or of one value, and is a graph input, too. Here each becomes an
initializer that nobody can override, drawn from a fixed seed such that activations keep their scale all the way:

- a weight of fan-in n is normal with variance 2/n (He et al., 2015, arXiv:1502.01852, equation 10);
- a BatchNormalization is near the identity: scale and variance near 1, mean and bias near 0, as other biases are;
- the one that ends a branch of a sum gets half the scale, or sixteen sums in a row would blow up.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxpress.optimizer.errors import OnnxpressError

_IR_VERSION = 8  # the first that lets an initializer be no input is 4; this is what exporters write
_NOISE = 0.1

Array = np.ndarray[Any, Any]


def build(topology: str) -> ir.Model:
    """A network with random weights, float32 in and out as the file of `onnx` has it, opset 9.

    Args:
        topology: Such as "resnet50".

    Raises:
        OnnxpressError: The installed package has no such network.
    """
    model = ir.load(_file(topology))
    model.ir_version = _IR_VERSION
    graph, generator = model.graph, np.random.default_rng(0)
    weights = {value: tuple(value.shape or ()) for value in graph.initializers.values()}
    constants = [node for node in graph if node.op_type == "ConstantOfShape"]
    for node in constants:
        weights[node.outputs[0]] = tuple(_array(node.inputs[0]).tolist())
    for value, shape in weights.items():
        if value.uses() and (role := _role(value)) in _DRAW:
            value.const_value = ir.tensor(_DRAW[role](shape, generator).astype(np.float32), name=value.name)
    for node in constants:
        _replace(graph, node)
    _settle(graph)
    return model


def build_files(topology: str, target: Path) -> None:
    """Write such a network.

    Raises:
        OnnxpressError: As `build`.
    """
    ir.save(build(topology), target)


def _file(topology: str) -> Path:
    found = importlib.util.find_spec("onnx")
    folders = found.submodule_search_locations if found else None
    file = Path((folders or ["."])[0], "backend", "test", "data", "light", f"light_{topology}.onnx")
    if not file.is_file():
        raise OnnxpressError(f"the installed package onnx has no {file.name}; another version of it may")
    return file


def _array(value: ir.Value | None) -> Array:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def _role(value: ir.Value) -> tuple[str, int]:
    """Operator that reads a weight, and as which input; Reshape and Unsqueeze on the way do not count."""
    node, index = next(iter(value.uses()))
    while node.op_type in ("Reshape", "Unsqueeze") and index == 0:
        node, index = next(iter(node.outputs[0].uses()))
    if (node.op_type, index) == ("BatchNormalization", 1) and _feeds(node, "Sum"):
        return "Branch", 1
    return node.op_type, index


def _feeds(node: ir.Node, op_type: str) -> bool:
    return any(reader.op_type == op_type for reader, _ in node.outputs[0].uses())


def _kernel(shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    scale = np.float32(math.sqrt(2 / math.prod(shape[1:])))
    kernel: Array = generator.standard_normal(shape, np.float32) * scale
    return kernel


def _offset(shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    return generator.normal(0, _NOISE, shape)


def _scale(shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    return generator.uniform(1 - _NOISE, 1 + _NOISE, shape)


_DRAW = {
    ("Conv", 1): _kernel,
    ("Conv", 2): _offset,
    ("Gemm", 1): _kernel,
    ("Gemm", 2): _offset,
    ("BatchNormalization", 1): _scale,
    ("BatchNormalization", 2): _offset,
    ("BatchNormalization", 3): _offset,
    ("BatchNormalization", 4): _scale,
    ("Branch", 1): lambda shape, generator: _scale(shape, generator) / 2,
    ("Mul", 1): _scale,
    ("Add", 1): _offset,
}


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    """Put the initializer that was drawn in the place of a ConstantOfShape."""
    output = node.outputs[0]
    weight = ir.Value(name=output.name, const_value=output.const_value)
    weight.shape, weight.dtype = ir.Shape(_array(output).shape), ir.DataType.FLOAT
    output.replace_all_uses_with(weight)
    graph.remove(node, safe=True)
    graph.register_initializer(weight)


def _settle(graph: ir.Graph) -> None:
    """Drop initializers that nothing reads and inputs that are initializers, and give every node a name."""
    for name, value in list(graph.initializers.items()):
        if value in graph.inputs:
            graph.inputs.remove(value)
        if not value.uses():
            del graph.initializers[name]
    for index, node in enumerate(graph):
        node.name = node.name or f"{node.op_type}_{index}"
