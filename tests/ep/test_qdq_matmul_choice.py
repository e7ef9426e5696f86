"""Which QDQ groups are taken where ONNX Runtime's own kernels are fast."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress import ep
from onnxpress.custom_ops import _kernels
from sessions import KNOWS_WHO_RUNS_WHAT, options, taken

K, N, SCALE = 70, 37, np.float32(0.0173)


def quantizer_style(*, activation="int8", readers=1, output_readers=0, op="MatMul", bias="float"):
    """Products of one rounded input, with the results rounded for so many readers, or not at all."""
    b = graphs.Builder(21)
    middle = np.array(128 if activation == "uint8" else 0, activation)
    rounding = b.constant("scale", SCALE), b.constant("middle", middle)
    codes = b.op("QuantizeLinear", b.input("A", ["m", K]), *rounding)
    for index in range(readers):
        W = b.constant(f"W{index}", np.ones((K, N), np.int8))
        w = b.op("DequantizeLinear", W, b.constant(f"w_scale{index}", np.float32(0.01)))
        inputs = [b.op("DequantizeLinear", codes, *rounding), w]
        if op == "Gemm" and bias == "float":
            inputs.append(b.constant(f"bias{index}", np.ones(N, np.float32)))
        elif op == "Gemm":
            integers, unit = b.constant(f"bias{index}", np.ones(N, np.int32)), b.constant(f"unit{index}", SCALE)
            inputs.append(b.op("DequantizeLinear", integers, unit))
        y = b.op(op, *inputs, name=f"product{index}")
        if output_readers:
            rounded = b.op("QuantizeLinear", y, *rounding, name=f"round{index}")
            for reader in range(output_readers):
                y = b.op("DequantizeLinear", rounded, *rounding, name=f"result{index}_{reader}")
                b.output(y, ["m", N])
        else:
            b.output(y, ["m", N])
    return ir.to_proto(b.model(10)).SerializeToString()


@pytest.mark.skipif(not KNOWS_WHO_RUNS_WHAT, reason="ONNX Runtime 1.23 does not tell who runs what")
@pytest.mark.skipif("avx2" not in _kernels.supported_isas(), reason="a rule for x86")
@pytest.mark.parametrize(
    ("changes", "takes"),
    [
        ({"activation": "uint8"}, False),
        ({"activation": "uint8", "readers": 2}, False),
        ({"activation": "uint8", "readers": 2, "output_readers": 2}, False),
        ({}, False),
        ({"output_readers": 1}, False),
        ({"readers": 2}, True),
        ({"readers": 2, "output_readers": 1}, True),
        ({"output_readers": 2}, True),
        ({"op": "Gemm"}, True),
        ({"op": "Gemm", "output_readers": 1}, False),
        ({"op": "Gemm", "bias": "int32"}, False),
        ({"op": "Gemm", "activation": "uint8"}, True),
    ],
)
def test_what_is_taken_on_avx2(changes, takes):
    """What ONNX Runtime computes in float: activations that stay signed, or a Gemm with nothing but a float bias."""
    proto = quantizer_style(**changes)
    operators = taken(ep.session(proto, options(), isa="avx2"))
    assert operators.count(changes.get("op", "MatMul")) == (changes.get("readers", 1) if takes else 0)
