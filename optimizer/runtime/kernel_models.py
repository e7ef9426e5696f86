"""Models of nothing but equal products, to time their kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnxpress.custom_ops import reference

from .kernel_case import DYNAMIC_MATMUL, QDQ_MATMUL, Case

_SCALE = np.float32(0.02)  # of activations: what a normal distribution needs
_MIDDLE = np.uint8(128)
MOST_CODE = 63
"""Of weights of int8: with larger ones ONNX Runtime's sums saturate on CPUs without VNNI, see `machine`."""


class Graph:
    """Appends products of one input, [m, K] of float32."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.rng = np.random.default_rng(0)
        self.graph = ir.Graph(
            [], [], nodes=[], opset_imports={"": 21, "com.microsoft": 1, "onnxpress": 1}, name="kernels"
        )
        self.a = ir.Value(name="A", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["m", case.K]))
        self.graph.inputs.append(self.a)

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """An initializer."""
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        self.graph.register_initializer(value)
        return value

    def op(self, op_type: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: int | str) -> list[ir.Value]:
        """The outputs of a new node; `domain` is one of the attributes."""
        domain = str(attributes.pop("domain", ""))
        name = f"{op_type}_{len(self.graph)}"
        node = ir.node(op_type, list(inputs), attributes=attributes, domain=domain, name=name, num_outputs=outputs)
        for index, value in enumerate(node.outputs):
            value.name = f"{name}_{index}"
        self.graph.append(node)
        return list(node.outputs)

    def output(self, value: ir.Value, element: ir.DataType = ir.DataType.FLOAT) -> None:
        """Make it an output, [m, N]."""
        value.type, value.shape = ir.TensorType(element), ir.Shape(["m", self.case.N])
        self.graph.outputs.append(value)

    def serialized(self) -> bytes:
        """The model."""
        data: bytes = ir.to_proto(ir.Model(self.graph, ir_version=10)).SerializeToString()
        return data


def weight_bytes(case: Case, symmetric: bool) -> int:
    """What is read of one weight: codes, scales and zero points."""
    if case.block_size == 0:
        return case.N * (case.K * case.bits // 8 + 4)
    if case.op == "minifloat":
        return case.N * -(-case.K // case.block_size) * (case.block_size * case.bits // 8 + 2)
    blocks = -(-case.K // case.block_size)
    points = 0 if symmetric else (blocks * case.bits + 7) // 8
    return case.N * (blocks * case.block_size * case.bits // 8 + 4 * blocks + points)


@dataclasses.dataclass(frozen=True)
class Side:
    """A serialized model of so many products."""

    data: bytes
    nodes: int


def sides(case: Case, cold: int, accuracy_level: int, symmetric: bool) -> tuple[Side, Side]:
    """The models for ONNX Runtime and for us, which are the same if it has the op.

    Args:
        case: The sizes; M is left open.
        cold: Bytes that the weights of a model take at least.
        accuracy_level: Of MatMulNBits and MatMulMiniFloat.
        symmetric: MatMulNBits without zero points.
    """
    nodes = max(1, -(-cold // weight_bytes(case, symmetric)))
    ours = Side(model(case, nodes, accuracy_level, symmetric), nodes)
    if case.op != "minifloat":
        return ours, ours
    nodes = min(nodes, max(1, -(-cold // (4 * case.K * case.N))))
    built = Graph(case)
    for index in range(nodes):
        packed, scales = _minifloat_arrays(built)
        weight = reference.dequantize_minifloat(
            packed, scales, format=case.format, block_size=case.block_size, K=case.K
        )
        built.output(built.op("MatMul", built.a, built.constant(f"W{index}", weight))[0])
    return Side(built.serialized(), nodes), ours


def model(case: Case, nodes: int, accuracy_level: int, symmetric: bool) -> bytes:
    """A serialized model of `nodes` products of one input with weights that all differ: equal ones would be held once.

    Args:
        case: The sizes; M is left open.
        nodes: How many.
        accuracy_level: Of MatMulNBits and MatMulMiniFloat.
        symmetric: MatMulNBits without zero points.
    """
    built = Graph(case)
    for index in range(nodes):
        if case.op == "matmul_nbits":
            built.output(_matmul_nbits(built, index, accuracy_level, symmetric))
        elif case.op == "minifloat":
            built.output(_minifloat(built, index, accuracy_level))
        else:
            built.output(_INT8[case.op](built, index))
    return built.serialized()


def _matmul_nbits(g: Graph, index: int, accuracy_level: int, symmetric: bool) -> ir.Value:
    case = g.case
    blocks, blob = -(-case.K // case.block_size), case.block_size * case.bits // 8
    inputs = [
        g.a,
        g.constant(f"B{index}", g.rng.integers(0, 256, (case.N, blocks, blob), dtype=np.uint8)),
        g.constant(f"scales{index}", g.rng.uniform(0.5, 1, (case.N, blocks)).astype(np.float32)),
    ]
    if not symmetric:
        size = (case.N, (blocks * case.bits + 7) // 8)
        inputs.append(g.constant(f"zero_points{index}", g.rng.integers(0, 256, size, dtype=np.uint8)))
    return g.op(
        "MatMulNBits", *inputs, domain="com.microsoft", K=case.K, N=case.N, bits=case.bits,
        block_size=case.block_size, accuracy_level=accuracy_level,
    )[0]  # fmt: skip


def _minifloat_arrays(g: Graph) -> tuple[np.ndarray, np.ndarray]:
    """Random codes that are numbers, and scales: float32 of columns, float16 of blocks."""
    case = g.case
    values = reference.MINIFLOATS[case.format]
    finite = np.flatnonzero(np.isfinite(values)).astype(np.uint8)
    size = case.block_size or case.K
    blocks = -(-case.K // size)
    # Bytes rather than codes: any plane of fewer than 8 bits is as random.
    shape = (case.N, blocks, size * case.bits // 8)
    packed = g.rng.choice(finite, shape) if case.bits == 8 else g.rng.integers(0, 256, shape, dtype=np.uint8)
    scales = g.rng.uniform(0.5, 1, (case.N, blocks)).astype(np.float16 if case.block_size else np.float32)
    return packed, scales


def _minifloat(g: Graph, index: int, accuracy_level: int) -> ir.Value:
    case = g.case
    packed, scales = _minifloat_arrays(g)
    return g.op(
        "MatMulMiniFloat", g.a, g.constant(f"B{index}", packed), g.constant(f"scales{index}", scales),
        domain="onnxpress", K=case.K, N=case.N, format=case.format, block_size=case.block_size,
        accuracy_level=accuracy_level,
    )[0]  # fmt: skip


def _weight(g: Graph, index: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Codes, scales and zero points of int8, a column at a time."""
    K, N = g.case.K, g.case.N
    return (
        g.constant(f"W{index}", g.rng.integers(-MOST_CODE, MOST_CODE + 1, (K, N)).astype(np.int8)),
        g.constant(f"scales{index}", g.rng.uniform(0.005, 0.01, N).astype(np.float32)),
        g.constant(f"zero_points{index}", np.zeros(N, np.int8)),
    )


def _qdq_matmul(g: Graph, index: int) -> ir.Value:
    K = g.case.K
    scales = [g.constant(f"{name}_scale{index}", s) for name, s in (("a", _SCALE), ("y", _SCALE * np.float32(K**0.5)))]
    middle = g.constant(f"middle{index}", np.array(_MIDDLE))
    a = g.op("DequantizeLinear", *g.op("QuantizeLinear", g.a, scales[0], middle), scales[0], middle)
    w = g.op("DequantizeLinear", *_weight(g, index), axis=1)
    y = g.op("MatMul", *a, *w)
    return g.op("DequantizeLinear", *g.op("QuantizeLinear", *y, scales[1], middle), scales[1], middle)[0]


def _dynamic_matmul(g: Graph, index: int) -> ir.Value:
    codes, scales, zero_points = _weight(g, index)
    a, a_scale, a_zero_point = g.op("DynamicQuantizeLinear", g.a, outputs=3)
    y = g.op("Cast", *g.op("MatMulInteger", a, codes, a_zero_point, zero_points), to=int(ir.DataType.FLOAT))
    return g.op("Mul", *y, *g.op("Mul", a_scale, scales))[0]


_INT8: dict[str, Callable[[Graph, int], ir.Value]] = {QDQ_MATMUL: _qdq_matmul, DYNAMIC_MATMUL: _dynamic_matmul}
