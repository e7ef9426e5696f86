"""Ops of domain `onnxpress` spelled out in standard ONNX ops.

A node whose model carries such a function passes the checker, gets its shapes inferred and runs, slowly, in a
runtime that has never heard of this library. Where the library is registered, its kernel takes the node before the
function is inlined. One function serves one combination of sizes and types; `overload` tells them apart.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .reference import PLANES

DOMAIN = "onnxpress"
OPSET = 1
"""Version of the domain."""

MIN_OPSET = 13
"""Oldest opset of a model whose functions these can be."""


class _Body:
    """Appends nodes of standard ops."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []

    def op(self, op_type: str, *inputs: ir.Value, **attributes: int | str) -> ir.Value:
        node = ir.node(op_type, list(inputs), attributes=attributes, name=f"{op_type}_{len(self.nodes)}")
        node.outputs[0].name = f"v{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, array: np.ndarray) -> ir.Value:
        node = ir.node("Constant", [], attributes={"value": ir.tensor(array)}, name=f"Constant_{len(self.nodes)}")
        node.outputs[0].name = f"v{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def shape(self, *dims: int) -> ir.Value:
        return self.constant(np.array(dims, np.int64))

    def slice(self, value: ir.Value, begin: int, end: int) -> ir.Value:
        """Elements [begin, end) of the last axis."""
        return self.op("Slice", value, self.shape(begin), self.shape(end), self.shape(-1))

    def unpack(self, packed: ir.Value, lead: tuple[int, ...], count: int, bits: int) -> ir.Value:
        """Codes of `packed` uint8 [*lead, bytes] as float32 [*lead, count].

        Mod is the mask here: bitwise And came to ONNX only with opset 18.
        """
        total: ir.Value | None = None
        begin = shift = 0
        for width in PLANES[bits]:
            per_byte = 8 // width
            size = -(-count // per_byte)
            plane = self.slice(packed, begin, begin + size)
            column = self.op("Reshape", plane, self.shape(*lead, size, 1))
            shifts = self.constant(np.arange(per_byte, dtype=np.uint8) * np.uint8(width))
            shifted = self.op("BitShift", column, shifts, direction="RIGHT")
            if width < 8:
                shifted = self.op("Mod", shifted, self.constant(np.array(2**width, np.uint8)))
            flat = self.op("Reshape", shifted, self.shape(*lead, size * per_byte))
            codes = self.op("Cast", self.slice(flat, 0, count), to=int(ir.DataType.FLOAT))
            if shift:
                codes = self.op("Mul", codes, self.constant(np.array(2.0**shift, np.float32)))
            total = codes if total is None else self.op("Add", total, codes)
            begin, shift = begin + size, shift + width
        assert total is not None
        return total


def matmul_nbits(
    *,
    bits: int,
    K: int,
    N: int,
    block_size: int,
    activation: ir.DataType = ir.DataType.FLOAT,
    scale: ir.DataType = ir.DataType.FLOAT,
    zero_points: bool = False,
    bias: bool = False,
    opset: int = 18,
) -> ir.Function:
    """Body of `onnxpress::MatMulNBits`: the weight is dequantized to float32, then multiplied.

    The body computes what accuracy_level 0 does; the kernel differs from it by the rounding of the activations, at
    level 3 to bfloat16 and at level 4 to int8.

    Args:
        bits: 2 to 8.
        K: Length of the reduction.
        N: Output channels.
        block_size: Codes in a block.
        activation: Type of A, bias and the output: FLOAT or FLOAT16.
        scale: Type of the scales: FLOAT, FLOAT16 or BFLOAT16.
        zero_points: Whether the node has packed uint8 zero points.
        bias: Whether the node has a bias.
        opset: That of the model, from MIN_OPSET on; the checker wants functions to have the same.

    Returns:
        The function, with inputs A, B, scales, zero_points and bias as the op has; its `overload` is unique for
        these arguments.
    """
    blocks = -(-K // block_size)
    body = _Body()
    inputs = [ir.Value(name=name) for name in ("A", "B", "scales", "zero_points", "bias")]
    inputs = inputs[: 5 if bias else 4 if zero_points else 3]

    codes = body.unpack(inputs[1], (N, blocks), block_size, bits)
    if zero_points:
        offset = body.op("Reshape", body.unpack(inputs[3], (N,), blocks, bits), body.shape(N, blocks, 1))
    else:
        offset = body.constant(np.array(2.0 ** (bits - 1), np.float32))
    factor = body.op("Reshape", inputs[2], body.shape(N, blocks, 1))
    if scale != ir.DataType.FLOAT:
        factor = body.op("Cast", factor, to=int(ir.DataType.FLOAT))
    weight = body.op("Mul", body.op("Sub", codes, offset), factor)
    weight = body.op("Reshape", weight, body.shape(N, blocks * block_size))
    if blocks * block_size != K:
        weight = body.slice(weight, 0, K)
    weight = body.op("Transpose", weight)
    a = inputs[0]
    if activation != ir.DataType.FLOAT:
        a = body.op("Cast", a, to=int(ir.DataType.FLOAT))
    y = body.op("MatMul", a, weight)
    if bias:
        added = inputs[4]
        if activation != ir.DataType.FLOAT:
            added = body.op("Cast", added, to=int(ir.DataType.FLOAT))
        y = body.op("Add", y, added)
    if activation != ir.DataType.FLOAT:
        y = body.op("Cast", y, to=int(activation))

    parts = [
        f"b{bits}",
        f"k{K}",
        f"n{N}",
        f"block{block_size}",
        activation.name.lower(),
        f"scale_{scale.name.lower()}",
    ]
    parts += ["zero_points"] * zero_points + ["bias"] * bias
    attributes = [
        ir.Attr(name, ir.AttributeType.INT, value)
        for name, value in (
            ("K", K),
            ("N", N),
            ("bits", bits),
            ("block_size", block_size),
            ("accuracy_level", 0),
        )
    ]
    return ir.Function(
        DOMAIN,
        "MatMulNBits",
        "_".join(parts),
        graph=ir.Graph(inputs, [y], nodes=body.nodes, opset_imports={"": opset}),
        attributes=attributes,
    )
