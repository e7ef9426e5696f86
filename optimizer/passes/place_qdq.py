"""A float graph becomes a QDQ graph: QuantizeLinear and DequantizeLinear where a plan has codes of 8 bits.

    x, W, b  ->  y = Conv(DQ(Q(x)), DQ(W8), DQ(b32)),  then Q(y)

Activations have one scale a tensor, x = s (q - z), from the range that a calibration found. Weights have one scale a
column or output channel and zero point 0, W = t W8, and the bias is in units of s t, so that sums of int32 need one
factor a channel and no correction by the weight's zero point.

Two kinds of operators vanish. Relu and Clip, because the codes behind them end where they cut. And a product by a
positive constant c: its result has the codes of its input and the scale s c.

A model whose opset is older than scales a channel, and cannot be raised, gets the same operators of ONNX Runtime's own
domain, of any opset.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..graph.constants import array_of
from ..graph.matching import opset_of
from ..graph.rewriting import SharedArrays, float_name, remember_float_name, required, set_names
from ..graph.sharing import insert_behind
from ..model_io.names import names_of
from ..planning.int8_operators import Operator, Role
from ..planning.plan_dynamic import MICROSOFT
from ..planning.plan_int8 import Int8Plan, is_bias
from ..quantization.affine import (
    AffineParameters,
    least_weight_scale,
    parameters_of_range,
    quantize_bias,
)
from ..quantization.quantized_weight import QuantizedWeight
from .base import GraphPass

Range = tuple[float, float]
Floats = npt.NDArray[np.float32]
RoundWeight = Callable[[ir.Node, str, Floats, int, "Floats | None"], QuantizedWeight]
"""(node, name, weight, axis of its output channels, least scales that its bias allows) -> codes of int8."""
BiasShift = Callable[[ir.Node, Floats, QuantizedWeight], "Floats | None"]
"""(node, weight as a Conv or a matrix [K, N], its rounded form) -> what to add to the bias, one number a channel."""

OPSET = 13
"""From which ONNX's own DequantizeLinear has scales a channel."""
_CODES = "_quantized"
"""What the codes of a constant are called, behind its name."""


@dataclasses.dataclass(frozen=True)
class _Codes:
    """Codes of a tensor and what they mean."""

    value: ir.Value
    parameters: AffineParameters


class PlaceQdq(GraphPass):
    """Carry out a plan.

    Cases: Conv, Gemm and MatMul with a constant weight; MatMul of two activations; operators that move codes; Add and
    Mul, also with a constant; Concat, Split, pools, LeakyRelu, Sigmoid; products by a constant; Relu and Clip.

    Args:
        plan: What is rounded, and what stays.
        ranges: Lowest and highest value of each tensor that the plan rounds, by name.
        round_weight: How weights are rounded.
        dtype: uint8 or int8, of activations.
        symmetric: Zero points of activations in the middle of the codes, but where a Relu or Clip vanishes.
        shift: Correction of biases.
    """

    def __init__(
        self,
        plan: Int8Plan,
        ranges: Mapping[str, Range],
        round_weight: RoundWeight,
        *,
        dtype: npt.DTypeLike = np.uint8,
        symmetric: bool = False,
        shift: BiasShift = lambda _node, _weight, _rounded: None,
    ) -> None:
        self._plan = plan
        self._ranges = ranges
        self._round_weight = round_weight
        self._dtype = np.dtype(dtype)
        self._symmetric = symmetric
        self._shift = shift

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite the graph; whether anything changed."""
        self._graph, plan = model.graph, self._plan
        self._domain = "" if opset_of(model) >= OPSET else MICROSOFT
        model.graph.opset_imports.setdefault(self._domain, 1)
        self._codes: dict[ir.Value, _Codes] = {}
        self._constants = SharedArrays(model.graph)
        # What a node reads and makes is looked up before anything is rewired.
        steps = [(operator, operator.activations, plan.outputs(operator)) for operator in plan.operators.values()]
        for operator, reads, makes in steps:
            for value in reads:
                if value not in self._codes:
                    self._encode_input(value)
            inputs = [self._codes[value] for value in reads]
            if operator.role is Role.SCALE:
                self._rescale(operator, inputs[0], makes[0])
                continue
            self._round_constants(operator, inputs[0].parameters)
            for value in makes:
                same = operator.role in (Role.MOVE, Role.SPLIT)
                self._encode_output(value, inputs[0].parameters if same else self._parameters(value))
        return bool(steps)

    def readers(self, name: str) -> tuple[str, ...]:
        """Names of the nodes that read a weight, by the name under which it was rounded."""
        decoders = [node for node, _ in self._constants.first(name + _CODES).uses()]
        return tuple(reader.name or "" for node in decoders for reader, _ in node.outputs[0].uses())

    def _parameters(self, value: ir.Value) -> AffineParameters:
        low, high = self._ranges[value.name or ""]
        bounds = self._bounds(value)
        if bounds is None:
            return parameters_of_range(low, high, self._dtype, self._symmetric)
        low, high = max(low, bounds[0]), min(high, bounds[1])
        if low >= 0 >= high:  # all that was seen is zero; other data has to be held within the bounds all the same
            low, high = (bound if math.isfinite(bound) else 0.0 for bound in bounds)
        return parameters_of_range(low, high, self._dtype, symmetric=False)

    def _bounds(self, value: ir.Value) -> tuple[float, float] | None:
        """Those of all nodes behind a result that its rounding stands for; None where there are none."""
        low, high, found = -math.inf, math.inf, False
        while (node := value.producer()) is not None and (clamp := self._plan.replaced.get(node)) is not None:
            low, high = (min(max(bound, low), high) for bound in clamp.bounds)
            value, found = required(node.inputs[0]), True
        return (low, high) if found else None

    def _encode_input(self, value: ir.Value) -> None:
        """Codes of a value of float: those who compute in float go on reading it."""
        readers = [
            (node, index)
            for node, index in value.uses()
            if (operator := self._plan.operators.get(node)) is not None and index in operator.inputs
        ]
        decoded = self._decode(value, self._encode(value, value, self._parameters(value)))
        for node, index in readers:
            node.replace_input_with(index, decoded)

    def _encode_output(self, value: ir.Value, parameters: AffineParameters) -> None:
        """Codes of a result: all read them, or else ONNX Runtime would not make one node of the group."""
        result = value
        while (node := result.producer()) is not None and node in self._plan.replaced:
            result = required(node.inputs[0])
        readers = list(value.uses())
        decoded = self._decode(value, self._encode(value, result, parameters))
        self._hand_over(value, decoded, readers)

    def _rescale(self, operator: Operator, codes: _Codes, value: ir.Value) -> None:
        """The codes of the input stand for the result, with another scale."""
        scaled = dataclasses.replace(
            codes.parameters, scale=(codes.parameters.scale * operator.factor).astype(np.float32)
        )
        self._codes[value] = renamed = _Codes(codes.value, scaled)
        self._hand_over(value, self._decode(value, renamed), list(value.uses()))

    def _hand_over(self, value: ir.Value, decoded: ir.Value, readers: Sequence[tuple[ir.Node, int]]) -> None:
        """Let readers, and the graph where it is an output, have the decoded value."""
        for node, index in readers:
            node.replace_input_with(index, decoded)
        if value.is_graph_output():
            for index, output in enumerate(self._graph.outputs):
                if output is value:
                    self._graph.outputs[index] = decoded
            remember_float_name(value, float_name(value))
            value.name, decoded.name = names_of(self._graph).value(f"{value.name}_float"), value.name

    def _encode(self, value: ir.Value, result: ir.Value, parameters: AffineParameters) -> _Codes:
        """Codes of `result`, which stand for `value`."""
        node = ir.node("QuantizeLinear", [result, *self._operands(value, parameters)], domain=self._domain)
        set_names(node, self._graph, f"{value.name}_quantize", f"{value.name}_quantized")
        output = node.outputs[0]
        output.shape, output.type = value.shape, ir.TensorType(ir.DataType.from_numpy(self._dtype))
        insert_behind(result, self._graph, node)
        self._codes[value] = codes = _Codes(output, parameters)
        return codes

    def _decode(self, value: ir.Value, codes: _Codes) -> ir.Value:
        node = ir.node("DequantizeLinear", [codes.value, *self._operands(value, codes.parameters)], domain=self._domain)
        set_names(node, self._graph, f"{value.name}_dequantize", f"{value.name}_dequantized")
        output = node.outputs[0]
        output.shape, output.type = value.shape, ir.TensorType(ir.DataType.FLOAT)
        remember_float_name(output, float_name(value))
        insert_behind(codes.value, self._graph, node)
        return output

    def _operands(self, value: ir.Value, parameters: AffineParameters) -> list[ir.Value]:
        return [
            self._constants.add(f"{value.name}_scale", parameters.scale),
            self._constants.add(f"{value.name}_zero_point", parameters.zero_point),
        ]

    def _round_constants(self, operator: Operator, x: AffineParameters) -> None:
        """Weights, biases and constant operands."""
        if operator.constant is None:
            return
        node = operator.node
        value = required(node.inputs[operator.constant])
        array = _read(value)
        name = value.name or f"{node.name}_weight"
        if operator.role is Role.BINARY:
            parameters = parameters_of_range(float(array.min(initial=0)), float(array.max(initial=0)), self._dtype)
            codes = parameters.quantize(array)
            self._replace_constant(node, operator.constant, f"{name}_{node.name}", codes, parameters, None)
            return
        if len(value.uses()) > 1:  # the others have attributes and a bias of their own
            name = f"{name}_{node.name}"
        if operator.role is Role.GEMM:
            array = self._as_matrix(node, array)
        axis = 0 if operator.role is Role.CONV else 1
        bias = None if operator.role is Role.MATMUL else self._bias(operator, array.shape[axis])
        least = None if bias is None else least_weight_scale(bias, x.scale)
        rounded = self._round_weight(node, name, array, axis, least)
        parameters = AffineParameters(rounded.scale, np.zeros(rounded.scale.shape, np.int8))
        self._replace_constant(node, operator.constant, name, rounded.integers(), parameters, axis)
        shift = self._shift(node, array, rounded)
        if operator.role is Role.MATMUL:
            self._shift_added_bias(node, shift)
        elif bias is not None or shift is not None:
            parts = [part for part in (bias, shift) if part is not None]
            self._round_bias(node, x, rounded, np.sum(parts, axis=0))

    @staticmethod
    def _as_matrix(node: ir.Node, array: Floats) -> Floats:
        """The weight of a Gemm as [K, N], its attributes worked in."""
        if node.attributes.get_int("transB", 0):
            array = array.T
        array = array * np.float32(node.attributes.get_float("alpha", 1.0))
        node.attributes["transB"] = ir.AttrInt64("transB", 0)
        node.attributes["alpha"] = ir.AttrFloat32("alpha", 1.0)
        return np.ascontiguousarray(array)

    def _replace_constant(
        self, node: ir.Node, index: int, name: str, codes: npt.NDArray[np.generic], parameters: AffineParameters,
        axis: int | None,
    ) -> None:  # fmt: skip
        operands = [
            self._constants.add(f"{name}{_CODES}", codes),
            self._constants.add(f"{name}_scale", parameters.scale),
            self._constants.add(f"{name}_zero_point", parameters.zero_point),
        ]
        attributes = {"axis": axis} if axis is not None and parameters.scale.ndim else {}
        decode = ir.node("DequantizeLinear", operands, attributes=attributes, domain=self._domain)
        set_names(decode, self._graph, f"{node.name}_{index}_dequantize", f"{node.name}_{index}_dequantized")
        output = decode.outputs[0]
        output.shape, output.type = ir.Shape(codes.shape), ir.TensorType(ir.DataType.FLOAT)
        self._graph.insert_before(node, decode)
        node.replace_input_with(index, output)

    @staticmethod
    def _bias(operator: Operator, channels: int) -> Floats | None:
        """The bias of a Conv or Gemm, one number a channel, its attribute worked in."""
        node = operator.node
        beta = np.float32(1)
        if operator.role is Role.GEMM:
            beta = np.float32(node.attributes.get_float("beta", 1.0))
            node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
        given = node.inputs[2] if len(node.inputs) > 2 else None
        if given is None:
            return None
        bias: Floats = np.zeros(channels, np.float32) + beta * _read(given).reshape(-1)
        return bias

    def _round_bias(self, node: ir.Node, x: AffineParameters, rounded: QuantizedWeight, bias: Floats) -> None:
        codes, scale = quantize_bias(bias, x.scale, rounded.scale)
        parameters = AffineParameters(scale, np.zeros(scale.shape, np.int32))
        node.resize_inputs(3)
        self._replace_constant(node, 2, f"{node.name}_bias", codes, parameters, 0)

    def _shift_added_bias(self, node: ir.Node, shift: Floats | None) -> None:
        """The bias of a MatMul is an Add behind it, in float."""
        readers = list(node.outputs[0].uses())
        if shift is None or len(readers) != 1 or not is_bias(add := readers[0][0], node.outputs[0]):
            return
        index = 1 - readers[0][1]
        bias = _read(add.inputs[index]) + shift
        add.replace_input_with(index, self._constants.add(f"{add.name}_bias_shifted", bias.astype(np.float32)))


def _read(value: ir.Value | None) -> Floats:
    return required(array_of(value)).astype(np.float32, copy=False)
