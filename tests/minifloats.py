"""Weights of small floating-point codes and models of one MatMulMiniFloat."""

from __future__ import annotations

import dataclasses

import graphs
import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnxpress.custom_ops import functions, reference

FORMATS = tuple(reference.MINIFLOATS)
SCALE_TYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.uint8)  # the last holds exponents
INPUTS = ("B", "scales", "bias")
ATTRIBUTES = ("K", "N", "format", "block_size", "accuracy_level")


def finite_codes(format: str):
    return np.flatnonzero(np.isfinite(reference.MINIFLOATS[format])).astype(np.uint8)


def make_scales(rng, shape, scale_type):
    if scale_type == np.uint8:
        return rng.integers(120, 132, shape).astype(np.uint8)
    return rng.uniform(0.5, 1.5, shape).astype(scale_type)


def make_weight(rng, format: str, block_size: int, K: int, N: int, scale_type=np.float32):
    """A packed weight of random codes that are numbers, and its scales."""
    size = block_size or K
    blocks = -(-K // size)
    codes = rng.choice(finite_codes(format), (N, blocks, size))
    packed = reference.pack_codes(codes, reference.minifloat_bits(format))
    return packed, make_scales(rng, (N, blocks), scale_type)


@dataclasses.dataclass
class Case:
    """A product; its random arrays by the name of their input."""

    format: str = "e4m3fn"
    K: int = 100
    N: int = 37
    block_size: int = 32
    scale: type = np.float32
    activation: type = np.float32
    bias: bool = False
    accuracy_level: int = 0
    seed: int = 0

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        packed, scales = make_weight(rng, self.format, self.block_size, self.K, self.N, self.scale)
        if self.activation == np.float16:  # whose range the sums must not leave
            scales = scales - np.uint8(14) if self.scale == np.uint8 else (scales * 2.0**-14).astype(self.scale)
        self.arrays = {"B": packed, "scales": scales}
        if self.bias:
            self.arrays["bias"] = rng.standard_normal(self.N).astype(self.activation)

    @property
    def kind(self) -> ir.DataType:
        return ir.DataType.from_numpy(np.dtype(self.activation))

    def feed(self, *lead: int, seed: int = 1):
        return np.random.default_rng(seed).standard_normal((*lead, self.K)).astype(self.activation)

    def reference(self, A, level: int | None = None):
        return reference.matmul_minifloat(
            A, self.arrays["B"], self.arrays["scales"], self.arrays.get("bias"), format=self.format,
            block_size=self.block_size, K=self.K, accuracy_level=self.accuracy_level if level is None else level,
        )  # fmt: skip

    def close(self, got, A, level: int = 0) -> bool:
        """Whether an output is that of the reference, within the rounding of its type."""
        want = self.reference(A, level)
        precision = 1e-5 if self.activation == np.float32 else 2e-3
        limit = precision * np.abs(want).max(initial=1e-30)
        return got.dtype == self.activation and got.shape == want.shape and bool(np.all(np.abs(got - want) <= limit))

    def model(self, *, function: bool = True, constant=INPUTS, opset: int = 18, lead=("a", "b"), **changed):
        """A serialized model; `changed` replaces attributes and, by name, arrays; None drops them."""
        attributes = {name: getattr(self, name) for name in ATTRIBUTES} | {
            key: value for key, value in changed.items() if key in ATTRIBUTES
        }
        arrays = self.arrays | {key: value for key, value in changed.items() if key in INPUTS}
        b = graphs.Builder(opset)
        inputs = [b.input("A", [*lead, self.K], self.kind)]
        for name in INPUTS:
            array = arrays.get(name)
            if array is None:
                inputs.append(None)
            elif name in constant:
                inputs.append(b.constant(name, np.asarray(array)))
            else:
                inputs.append(b.input(name, array.shape, ir.DataType.from_numpy(array.dtype)))
        while inputs[-1] is None:
            inputs.pop()
        attributes = {key: value for key, value in attributes.items() if value is not None}
        y = b.op("MatMulMiniFloat", *inputs, name="the_node", domain="onnxpress", **attributes)
        b.output(y, [*lead, self.N], self.kind)
        b.graph.opset_imports["onnxpress"] = 1
        model = b.model(10)
        if function:
            body = functions.matmul_minifloat(
                format=self.format, K=self.K, N=self.N, block_size=self.block_size, activation=self.kind,
                scale=ir.DataType.from_numpy(np.dtype(self.scale)), bias=self.bias, opset=opset,
            )  # fmt: skip
            model.functions[body.identifier()] = body
            y.producer().overload = body.overload
        return ir.to_proto(model).SerializeToString()
