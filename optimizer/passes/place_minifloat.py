"""Tensors are rounded to floating-point numbers of few bits where a plan says so.

    y = op(x, W)   ->   y = op(s round(x / s), DQ(W8))

An activation has one scale s, from a calibration or, where there is none, from its largest magnitude as it comes,

    s = max |x| / max of the format,

and e5m2 has none: its exponents hold what there is (Shen et al., arXiv:2309.14592, section 3.1). Where ONNX has the
format as a type, rounding is a QuantizeLinear and a DequantizeLinear; e3m4 is our function RoundMiniFloat of standard
operators. Weights are codes with a scale an output channel. A bias stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxpress.custom_ops import functions, reference

from ..graph.constants import array_of, constant_of
from ..graph.matching import opset_of
from ..graph.rewriting import SharedArrays, insert_before, replace, required, set_names
from ..graph.sharing import insert_behind
from ..planning.int8_operators import Operator, Role
from ..planning.plan_minifloat import MinifloatPlan
from ..quantization.formats import FORMATS
from ..quantization.quantized_weight import QuantizedWeight
from ..quantization.schemes import WeightScheme
from .base import GraphPass
from .declare_functions import add_function
from .decode_minifloat import decode_minifloat

Floats = npt.NDArray[np.float32]
RoundWeight = Callable[[str, Floats, int, WeightScheme], QuantizedWeight]
"""(name, weight, axis of its output channels, scheme) -> its codes."""

TYPES = {"e4m3fn": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
"""Of codes in NumPy, by format, where ONNX has the type since opset 19."""
OPSET, IR_VERSION = 21, 10
"""The first in which QuantizeLinear needs no zero point to know its type.

Opset 19 has the types. But a Relu before a QuantizeLinear with a constant zero point of 0 is left out by ONNX Runtime
(1.23 and 1.32 were tried), which is right for uint8 alone: negative numbers then come through.
"""

_LEAST = float(np.finfo(np.float32).tiny)


def activation_scale(largest: float, format: str) -> float:
    """The scale of a tensor with magnitudes up to `largest`: finite, above 0, and so is its product with any number.

    A tensor of zeros has the scale 1, and so has e5m2 where it holds the largest magnitude as a normal number.
    """
    most = FORMATS[format].max
    if largest == 0 or (format == "e5m2" and 2.0**-14 <= largest <= most):
        return 1.0
    return min(max(largest / most, _LEAST), _most_scale(format))


def _most_scale(format: str) -> float:
    return float(np.finfo(np.float32).max) / 2 / FORMATS[format].max


class PlaceMinifloat(GraphPass):
    """Carry out a plan.

    Cases: Conv, Gemm and MatMul with a constant weight; MatMul of two activations; Add and Mul of two activations;
    LayerNormalization and BatchNormalization; Gather of a constant table, whose rows are decoded after they are read.

    Args:
        plan: What is rounded, and what stays.
        round_weight: How weights are rounded.
        largest: Largest magnitude of each tensor that the plan rounds, by name; None where scales are found at run
            time.
    """

    def __init__(self, plan: MinifloatPlan, round_weight: RoundWeight, largest: Mapping[str, float] | None) -> None:
        self._plan = plan
        self._round_weight = round_weight
        self._largest = largest

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite the graphs; whether anything changed. Before `OPSET` no format has a type."""
        plan, self._model = self._plan, model
        self._types = TYPES if opset_of(model) >= OPSET else {}
        self._rounded: dict[tuple[ir.Graph, ir.Value, str], ir.Value] = {}
        self._weights: dict[tuple[int, int, str, bool], tuple[str, QuantizedWeight]] = {}
        self._decoded: dict[tuple[str, ir.Graph], ir.Value] = {}
        self._tables: dict[tuple[int, str], tuple[str, ir.Value, ir.Value]] = {}
        self._constants = SharedArrays(model.graph)
        self._readers: dict[str, list[str]] = {}
        self._listed = {decision.node: decision.node_name for decision in plan.decisions}
        for node, operator in plan.operators.items():
            settings = plan.settings[node]
            self._graph = required(node.graph)
            for index in operator.inputs:
                node.replace_input_with(index, self._round(required(node.inputs[index]), settings.activation_format))
            if operator.role is Role.TABLE:
                self._decode_rows(node, settings.weight)
            elif operator.constant is not None:
                node.replace_input_with(operator.constant, self._weight(operator, settings.weight))
        if plan.operators:
            model.ir_version = max(model.ir_version, IR_VERSION)
        return bool(plan.operators)

    def readers(self, name: str) -> tuple[str, ...]:
        """Names of the nodes that read a weight, by the name under which it was rounded."""
        return tuple(self._readers[name])

    def _round(self, value: ir.Value, format: str) -> ir.Value:
        """The rounded form of a tensor, shared by all who read it in a graph."""
        key = self._graph, value, format
        if key not in self._rounded:
            scale = self._scale(value, format)
            after = value if scale.producer() is None else scale
            name = f"{value.name}_{format}"
            if format in self._types:
                kind = ir.DataType.from_numpy(np.dtype(TYPES[format]))
                attributes = {"output_dtype": int(kind)}
                quantize = ir.node("QuantizeLinear", [value, scale], attributes=attributes, name=f"{name}_codes")
                codes = self._add(after, quantize, value)
                codes.type = ir.TensorType(kind)
                self._rounded[key] = self._add(codes, ir.node("DequantizeLinear", [codes, scale], name=name), value)
            else:
                self._rounded[key] = self._add(after, self._function_node(value, scale, format, name), value)
        return self._rounded[key]

    def _function_node(self, value: ir.Value, scale: ir.Value, format: str, name: str) -> ir.Node:
        function = functions.round_minifloat(format=format, opset=opset_of(self._model))
        function = add_function(self._model, function)
        return ir.node(
            "RoundMiniFloat", [value, scale], attributes={"format": format},
            domain=functions.DOMAIN, overload=function.overload, name=name,
        )  # fmt: skip

    def _scale(self, value: ir.Value, format: str) -> ir.Value:
        if self._largest is not None:
            scale = activation_scale(self._largest[value.name or ""], format)
        elif format == "e5m2":
            scale = 1.0
        else:
            return self._scale_at_run_time(value, format)
        return self._constants.add(f"{value.name}_{format}_scale", np.array(scale, np.float32))

    def _scale_at_run_time(self, value: ir.Value, format: str) -> ir.Value:
        """Held as in `activation_scale`, but that of zeros is the least."""
        most, low, high = (
            self._constants.add(f"{format}_{name}", np.array(number, np.float32))
            for name, number in (
                ("max", FORMATS[format].max),
                ("scale_min", _LEAST),
                ("scale_max", _most_scale(format)),
            )
        )
        name = f"{value.name}_{format}_scale"
        scale = self._add(value, ir.node("Abs", [value], name=f"{name}_abs"), value)
        scale = self._add(scale, ir.node("ReduceMax", [scale], attributes={"keepdims": 0}, name=f"{name}_max"), None)
        scale = self._add(scale, ir.node("Div", [scale, most], name=f"{name}_div"), None)
        return self._add(scale, ir.node("Clip", [scale, low, high], name=name), None)

    def _add(self, after: ir.Value, node: ir.Node, like: ir.Value | None, graph: ir.Graph | None = None) -> ir.Value:
        """The output of a new node, which stands behind `after`, of type float32 and like another or one number."""
        graph = graph or self._graph
        set_names(node, graph, f"{node.name}", f"{node.name}")
        insert_behind(after, graph, node)
        output = node.outputs[0]
        output.type = ir.TensorType(ir.DataType.FLOAT)
        output.shape = ir.Shape([]) if like is None else like.shape
        return output

    def _weight(self, operator: Operator, scheme: WeightScheme) -> ir.Value:
        """A decoded weight, shared by all who read it alike."""
        node, value = operator.node, required(operator.node.inputs[1])
        axis = 0 if operator.role is Role.CONV or node.attributes.get_int("transB", 0) == 1 else 1
        # A function decodes rows, an output channel each: Gemm can read them so, MatMul gets them transposed.
        as_rows = node.op_type == "Gemm" and scheme.format not in self._types
        if as_rows:
            node.attributes["transB"] = ir.AttrInt64("transB", 1)
        key = _tensor_id(value), axis, scheme.format, as_rows
        if key not in self._weights:
            name = self._name(value, node)
            self._weights[key] = name, self._round_weight(name, required(array_of(value)), axis, scheme)
        name, rounded = self._weights[key]
        self._readers[name].append(self._listed[node])
        by_type = scheme.format in self._types
        place = name, self._model.graph if by_type else self._graph  # those inside its nodes see the main graph
        if place not in self._decoded:
            decode = self._decode_by_type if by_type else self._decode_by_function
            self._decoded[place] = decode(node, f"{name}_{scheme.format}", rounded)
        return self._decoded[place]

    def _name(self, value: ir.Value, node: ir.Node) -> str:
        """What a rounded constant is called: as the constant, but where another form of it is called so already."""
        name = value.name or f"{node.name}_weight"
        name = f"{name}_{node.name}" if name in self._readers else name
        self._readers[name] = []
        return name

    def _decode_by_type(self, node: ir.Node, name: str, rounded: QuantizedWeight) -> ir.Value:
        codes = self._constants.add(name, rounded.codes().view(TYPES[rounded.scheme.format]))
        operands = [codes, self._constants.add(f"{name}_scale", rounded.scale)]
        decode = ir.node("DequantizeLinear", operands, attributes={"axis": rounded.axis}, name=f"{name}_decoded")
        return self._add(codes, decode, codes, self._model.graph)

    def _decode_by_function(self, node: ir.Node, name: str, rounded: QuantizedWeight) -> ir.Value:
        codes = self._constants.add(name, rounded.packed)
        scales = self._constants.add(f"{name}_scale", rounded.scales)
        return decode_minifloat(
            self._model, node, codes, scales, format=rounded.scheme.format, shape=rounded.rows_shape,
            transposed=node.op_type == "MatMul",
        )  # fmt: skip

    def _decode_rows(self, node: ir.Node, scheme: WeightScheme) -> None:
        """Rows of a table are read as codes: a Gather has no floating-point types of 8 bits, and decodes no others."""
        table, ids = required(node.inputs[0]), node.inputs[1]
        key = _tensor_id(table), scheme.format
        if key not in self._tables:
            name = self._name(table, node)
            rounded = self._round_weight(name, required(array_of(table)), 1, scheme)
            codes = self._constants.add(f"{name}_{scheme.format}", rounded.codes())
            scales = self._constants.add(f"{name}_{scheme.format}_scale", rounded.scale)
            self._tables[key] = name, codes, scales
        name, codes, scales = self._tables[key]
        self._readers[name].append(self._listed[node])
        numbers = self._constants.add(f"{scheme.format}_numbers", reference.MINIFLOATS[scheme.format])
        like = node.outputs[0]
        rows = insert_before(node, "Gather", [codes, ids], None, suffix="_codes", attributes={"axis": 0})
        index = insert_before(node, "Cast", [rows], None, suffix="_index", attributes={"to": int(ir.DataType.INT32)})
        for made, kind in ((rows, ir.DataType.UINT8), (index, ir.DataType.INT32)):
            made.type, made.shape = ir.TensorType(kind), like.shape
        decoded = insert_before(node, "Gather", [numbers, index], like, suffix="_numbers", attributes={"axis": 0})
        replace(node, insert_before(node, "Mul", [decoded, scales], like, suffix="_scaled"))


def _tensor_id(value: ir.Value) -> int:
    """What tells constants apart: a function that is inlined twice leaves two values of one tensor."""
    return id(required(constant_of(value)))
