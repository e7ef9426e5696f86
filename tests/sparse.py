"""Block-sparse weights and models of one BlockSparseMatMul."""

from __future__ import annotations

import dataclasses

import graphs
import numpy as np
import onnx_ir as ir
from onnxpress.custom_ops import functions, reference

INPUTS = ("values", "indices", "offsets", "scales", "bias", "a_scale", "a_zero_point", "y_scale", "y_zero_point")
ATTRIBUTES = ("K", "N", "block_k", "block_n", "activation")


@dataclasses.dataclass
class Case:
    """A product; what it is made of has its fields, and random arrays by the name of their input."""

    K: int = 37
    N: int = 29
    block_k: int = 4
    block_n: int = 4
    density: float = 0.4
    integer: bool = True
    uint8: bool = False  # activations
    static: bool = False
    bias: bool = False
    activation: str = ""
    quantized_output: bool = False
    seed: int = 0

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        rows, columns = -(-self.N // self.block_n), -(-self.K // self.block_k)
        mask = rng.random((rows, columns)) < self.density
        self.arrays = {
            "values": self._values(rng, mask),
            "indices": np.nonzero(mask)[1].astype(np.int32),
            "offsets": np.concatenate([[0], np.cumsum(mask.sum(1))]).astype(np.int32),
        }
        if self.integer:
            self.arrays["scales"] = rng.uniform(0.001, 0.01, self.N).astype(np.float32)
        if self.bias:
            self.arrays["bias"] = rng.standard_normal(self.N).astype(np.float32)
        if self.static:
            self.arrays |= {"a_scale": np.float32(0.021), "a_zero_point": np.uint8(117)}
        if self.quantized_output:
            self.arrays |= {"y_scale": np.float32(0.05), "y_zero_point": np.uint8(9)}

    def _values(self, rng, mask):
        """Of the blocks in the mask, zero in the padding."""
        shape = (*mask.shape, self.block_n, self.block_k)
        if self.integer:
            dense = rng.integers(-128, 128, shape).astype(np.int8)
        else:
            dense = rng.standard_normal(shape).astype(np.float32)
        n = np.arange(mask.shape[0])[:, None] * self.block_n + np.arange(self.block_n)
        k = np.arange(mask.shape[1])[:, None] * self.block_k + np.arange(self.block_k)
        dense *= (n < self.N)[:, None, :, None] & (k < self.K)[None, :, None, :]
        return dense[mask]

    def feed(self, *lead: int, seed: int = 1):
        rng = np.random.default_rng(seed)
        if self.uint8:
            return rng.integers(0, 256, (*lead, self.K)).astype(np.uint8)
        return rng.standard_normal((*lead, self.K)).astype(np.float32)

    def reference(self, A):
        return reference.block_sparse_matmul(A, **self.arrays, K=self.K, N=self.N, activation=self.activation)

    def model(self, *, function: bool = True, opset: int = 18, lead=("a", "b"), **changed):
        """A serialized model; `changed` replaces attributes and, by name, arrays; None drops them."""
        attributes = {name: getattr(self, name) for name in ATTRIBUTES} | {
            key: value for key, value in changed.items() if key in ATTRIBUTES
        }
        arrays = self.arrays | {key: value for key, value in changed.items() if key in INPUTS}
        b = graphs.Builder(opset)
        inputs = [b.input("A", [*lead, self.K], ir.DataType.UINT8 if self.uint8 else ir.DataType.FLOAT)]
        for name in INPUTS:
            array = arrays.get(name)
            inputs.append(None if array is None else b.constant(name, np.asarray(array)))
        while inputs[-1] is None:
            inputs.pop()
        attributes = {key: value for key, value in attributes.items() if value is not None}
        y = b.op("BlockSparseMatMul", *inputs, name="the_node", domain="onnxpress", **attributes)
        b.output(y, [*lead, self.N], ir.DataType.UINT8 if self.quantized_output else ir.DataType.FLOAT)
        b.graph.opset_imports["onnxpress"] = 1
        model = b.model(10)
        if function:
            body = self.function(opset)
            model.functions[body.identifier()] = body
            y.producer().overload = body.overload
        return ir.to_proto(model).SerializeToString()

    def function(self, opset: int = 18) -> ir.Function:
        return functions.block_sparse_matmul(
            K=self.K, N=self.N, block_k=self.block_k, block_n=self.block_n,
            values=ir.DataType.INT8 if self.integer else ir.DataType.FLOAT,
            a=ir.DataType.UINT8 if self.uint8 else ir.DataType.FLOAT, activation=self.activation,
            bias=self.bias, static=self.static, quantized_output=self.quantized_output, opset=opset,
        )  # fmt: skip


FORMS = [
    {"integer": False},
    {"integer": False, "bias": True, "activation": "relu"},
    {"integer": False, "quantized_output": True},
    {},
    {"bias": True, "activation": "gelu"},
    {"static": True, "activation": "gelu_tanh"},
    {"static": True, "bias": True, "quantized_output": True},
    {"static": True, "uint8": True, "bias": True, "activation": "relu"},
    {"static": True, "uint8": True, "quantized_output": True},
    {"quantized_output": True, "activation": "gelu"},
]
"""Every kind of input, output and epilogue."""
