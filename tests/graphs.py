"""Small hand-built models."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


class Builder:
    """Appends nodes to one graph."""

    def __init__(self, opset: int = 18) -> None:
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="test")

    def input(self, name: str, shape: list, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.graph.inputs.append(value)
        return value

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
        self.graph.register_initializer(value)
        return value

    def op(self, op_type: str, *inputs: ir.Value, name: str | None = None, outputs: int = 1, domain="", **attributes):
        name = name or f"{op_type}_{len(self.graph)}"
        node = ir.node(op_type, list(inputs), attributes=attributes, name=name, num_outputs=outputs, domain=domain)
        for index, value in enumerate(node.outputs):
            value.name = f"{name}_out{index or ''}"
        self.graph.append(node)
        return node.outputs[0] if outputs == 1 else node.outputs

    def output(self, value: ir.Value, shape: list, dtype: ir.DataType = ir.DataType.FLOAT) -> None:
        value.type = ir.TensorType(dtype)
        value.shape = ir.Shape(shape)
        self.graph.outputs.append(value)

    def model(self, ir_version: int = 9) -> ir.Model:
        return ir.Model(self.graph, ir_version=ir_version)


def weight(K: int, N: int, seed: int = 0, dtype=np.float32) -> np.ndarray:
    return (np.random.default_rng(seed).standard_t(4, (K, N)) * 0.1).astype(dtype)


def matmul_model(K: int = 64, N: int = 48, *, opset: int = 18, bias: bool = False, dtype=np.float32) -> ir.Model:
    """y = x W (+ b) with a dynamic batch."""
    b = Builder(opset)
    kind = ir.DataType.from_numpy(np.dtype(dtype))
    y = b.op("MatMul", b.input("x", ["batch", K], kind), b.constant("W", weight(K, N, dtype=dtype)), name="product")
    if bias:
        y = b.op("Add", y, b.constant("b", weight(1, N, 1, dtype)[0]), name="sum")
    b.output(y, ["batch", N], kind)
    return b.model()


def chain():
    """relu(x W) with a Dropout, which clean-up removes."""
    b = Builder()
    y = b.op("MatMul", b.input("x", ["batch", 64]), b.constant("W", weight(64, 48)), name="product")
    y = b.op("Relu", b.op("Dropout", y), name="positive")
    b.output(y, ["batch", 48])
    return b.model()
