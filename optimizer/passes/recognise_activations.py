"""Activations that exporters write out become the operators that they are.

    max(min(x, b), a), relu(relu(x)), ...                     Clip, Relu
    max(x, a x), relu(x) - a relu(-x), PRelu by a number      LeakyRelu
    1 / (1 + exp(-x))                                         Sigmoid
    k clip(s x + t, 0, h),  k h = 1                           HardSigmoid(x; s/h, t/h)
    k x clip(s x + t, 0, h),  k h = 1                         x HardSigmoid(x; s/h, t/h), or HardSwish
    k x (1 + erf(x / sqrt 2)),  k = 1/2                       Gelu
    k x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))           Gelu by tanh, FastGelu

Factors may be anywhere: on the gate, on x, or behind the product. Gelu would else be cut apart by codes of 8 bits
within it, and ONNX Runtime no longer see it.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ..graph.affine_chains import Affine, read_link
from ..graph.clamps import Clamp, read_clamp
from ..graph.element_type import is_float32
from ..graph.matching import behind, fixed, input_of, is_standard, least_rank, number, opset_of, sole_reader
from ..graph.rewriting import add_array, insert_before, replace, required, take_over_name
from ..graph.weight_form import MICROSOFT
from .base import GraphPass
from .remove_unused import remove_unused

# Constants of exporters are float32, or a double of few digits.
_CLOSE = 1e-6

Sources = dict[ir.Value, tuple[float, float]]
"""Values x by which a gate's input is s x + t, as (s, t)."""


class RecogniseActivations(GraphPass):
    """Write each activation of float32 as one operator, or two where the opset has no HardSwish.

    Cases: see the module. Gelu is the standard one from opset 20 on, and else that of ONNX Runtime, which by tanh is
    its FastGelu. Only the main graph is changed.
    """

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite; whether anything changed."""
        self._model, self._opset = model, opset_of(model)
        changed = False
        for recognise in (self._clamp, self._leaky, self._sigmoid, self._hard, self._gelu):
            for node in list(model.graph):
                if node.graph is not None and node.outputs and is_float32(node.outputs[0]):
                    changed |= recognise(node)
            if changed:
                remove_unused(model)
        return changed

    def _clamp(self, node: ir.Node) -> bool:
        """A node that bounds, with all such nodes ahead of it that only it reads."""
        clamp = whole = read_clamp(node)
        if clamp is None or whole is None:
            return False
        while sole_reader(whole.x) is not None and (maker := whole.x.producer()) and (ahead := read_clamp(maker)):
            whole = ahead.then(whole)
        if whole.low == 0 and whole.high == math.inf:
            if whole is clamp and node.op_type == "Relu":
                return False
            replace(node, insert_before(node, "Relu", [whole.x], node.outputs[0], suffix="_relu"))
            return True
        if (whole is clamp and node.op_type == "Clip") or whole.low > whole.high:
            return False
        replace(node, self._clip(node, whole))
        return True

    def _clip(self, node: ir.Node, clamp: Clamp) -> ir.Value:
        bounds = {"min": clamp.low, "max": clamp.high}
        finite = {name: bound for name, bound in bounds.items() if math.isfinite(bound)}
        if self._opset < 11:
            return _insert(node, "Clip", [clamp.x], "_clip", **finite)
        inputs = [
            add_array(self._model.graph, f"{node.outputs[0].name}_{name}", np.array(finite[name], np.float32))
            if name in finite
            else None
            for name in bounds
        ]
        return insert_before(node, "Clip", [clamp.x, *inputs], node.outputs[0], suffix="_clip")

    def _leaky(self, node: ir.Node) -> bool:
        found = _leaky_slope(node)
        if found is None:
            return False
        x, slope = found
        replace(node, _insert(node, "LeakyRelu", [x], "_leaky", alpha=slope))
        return True

    def _sigmoid(self, node: ir.Node) -> bool:
        """1 / (1 + exp(-x))."""
        if is_standard(node, "Div") and number(node.inputs[0]) == 1:
            sum_ = node.inputs[1]
        elif is_standard(node, "Reciprocal"):
            sum_ = node.inputs[0]
        else:
            return False
        maker = sum_.producer() if sum_ is not None else None
        link = read_link(maker) if maker is not None else None
        if link is None or not _is_scalar(link.map, 1, 1, link.x):
            return False
        x = behind(behind(link.x, "Exp"), "Neg")
        if x is None:
            return False
        replace(node, insert_before(node, "Sigmoid", [x], node.outputs[0], suffix="_sigmoid"))
        return True

    def _hard(self, node: ir.Node) -> bool:
        """HardSigmoid, and its product with its own input."""
        if is_standard(node, "HardSigmoid") and node.inputs[0] is not None:
            if self._opset < 14:
                return False
            alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
            gate, sources, high = node.outputs[0], {node.inputs[0]: (alpha, beta)}, 1.0
        else:
            clamp = read_clamp(node)
            if clamp is None or clamp.low != 0 or not 0 < clamp.high < math.inf:
                return False
            gate, sources, high = node.outputs[0], _sources(clamp.x), clamp.high
        found = _gated(gate, sources, 1 / high)
        if found is not None:
            x, end = found
            slope, offset = (each / high for each in sources[x])
            if self._opset >= 14 and abs(slope - 1 / 6) < _CLOSE and abs(offset - 0.5) < _CLOSE:
                result = insert_before(end, "HardSwish", [x], end.outputs[0], suffix="_swish")
            elif is_standard(node, "HardSigmoid"):
                return False
            else:
                gate = _insert(end, "HardSigmoid", [x], "_gate", alpha=slope, beta=offset)
                result = insert_before(end, "Mul", [x, gate], end.outputs[0], suffix="_product")
            take_over_name(required(result.producer()), end)
            replace(end, result)
            return True
        if is_standard(node, "HardSigmoid"):
            return False
        last = _scaled_to(node, 1 / high)
        x, (slope, offset) = list(_private(sources).items())[-1]
        if last is None or offset == 0:
            return False
        replace(last, _insert(last, "HardSigmoid", [x], "_hard", alpha=slope / high, beta=offset / high))
        return True

    def _gelu(self, node: ir.Node) -> bool:
        """By erf or by tanh."""
        roots = _roots_of_gelu(node)
        sum_ = sole_reader(node.outputs[0]) if roots else None
        link = read_link(sum_) if sum_ is not None else None
        if link is None or not _is_scalar(link.map, 1, 1, link.x):
            return False
        found = _gated(link.output, dict.fromkeys(roots, (1.0, 0.0)), 0.5)
        if found is None:
            return False
        x, end = found
        tanh, standard = node.op_type == "Tanh", self._opset >= 20
        if not standard:
            self._model.opset_imports.setdefault(MICROSOFT, 1)
        y = insert_before(
            end, "FastGelu" if tanh and not standard else "Gelu", [x], end.outputs[0],
            domain="" if standard else MICROSOFT, suffix="_gelu",
            attributes={"approximate": "tanh"} if tanh and standard else None,
        )  # fmt: skip
        replace(end, y)
        return True


def _roots_of_gelu(node: ir.Node) -> list[ir.Value]:
    """Values x, one of which the Erf or Tanh may be the gate of; none of other nodes."""
    if not is_standard(node, "Erf", "Tanh") or node.inputs[0] is None:
        return []
    factor = 0.5**0.5 if node.op_type == "Erf" else (2 / math.pi) ** 0.5
    scaled = [value for value, (s, t) in _sources(node.inputs[0]).items() if abs(s - factor) < _CLOSE and t == 0]
    return scaled if node.op_type == "Erf" else [x for value in scaled if (x := _with_cube(value)) is not None]


def _with_cube(value: ir.Value) -> ir.Value | None:
    """The x of x + 0.044715 x^3."""
    node = value.producer()
    if not is_standard(node, "Add") or len(node.inputs) != 2 or None in node.inputs:
        return None
    for index in (0, 1):
        x = required(node.inputs[1 - index])
        for cube, (s, t) in _sources(required(node.inputs[index])).items():
            if abs(s - 0.044715) < _CLOSE and t == 0 and _is_cube(cube, x):
                return x
    return None


def _is_cube(value: ir.Value, x: ir.Value) -> bool:
    node = value.producer()
    if is_standard(node, "Pow"):
        return node.inputs[0] is x and number(input_of(node, 1)) == 3
    if not is_standard(node, "Mul") or len(node.inputs) != 2 or x not in node.inputs:
        return False
    square = required(node.inputs[1] if node.inputs[0] is x else node.inputs[0]).producer()
    if is_standard(square, "Pow"):
        return square.inputs[0] is x and number(input_of(square, 1)) == 2
    return is_standard(square, "Mul") and list(square.inputs) == [x, x]


def _insert(node: ir.Node, op_type: str, inputs: list[ir.Value], suffix: str, **attributes: float) -> ir.Value:
    value = insert_before(node, op_type, inputs, node.outputs[0], suffix=suffix)
    made = value.producer()
    assert made is not None
    for name, each in attributes.items():
        made.attributes[name] = ir.AttrFloat32(name, each)
    return value


def _is_scalar(map_: Affine, scale: float, shift: float, x: ir.Value) -> bool:
    """Whether a map is this one, the same for all elements."""
    return _scalar(map_, x) == (scale, shift)


def _scalar(map_: Affine, x: ir.Value) -> tuple[float, float] | None:
    """Scale and shift of a map that has one of each and leaves the axes of x alone."""
    if max(map_.shape, default=1) != 1 or len(map_.shape) > least_rank(x):
        return None
    return float(map_.scale.reshape(-1)[0]), float(map_.shift.reshape(-1)[0])


def _sources(value: ir.Value) -> Sources:
    """What a value is a scalar affine map of, itself first, then ever further ahead of it."""
    found, s, t = {value: (1.0, 0.0)}, 1.0, 0.0
    while (node := value.producer()) is not None and (link := read_link(node)) is not None:
        step = _scalar(link.map, link.x)
        if step is None:
            break
        value, s, t = link.x, s * step[0], s * step[1] + t
        found[value] = (s, t)
    return found


def _private(sources: Sources) -> Sources:
    """Those that need no other value to be kept for somebody else."""
    kept: Sources = {}
    for value, map_ in sources.items():
        kept[value] = map_
        if sole_reader(value) is None:
            break
    return kept


def _scales_behind(node: ir.Node) -> list[tuple[ir.Node, float]]:
    """A node and the products by a positive number behind it, each with the factor up to it."""
    steps, factor = [(node, 1.0)], 1.0
    while (reader := sole_reader(node.outputs[0])) is not None and (link := read_link(reader)) is not None:
        step = _scalar(link.map, link.x)
        if step is None or step[0] <= 0 or step[1] != 0:
            break
        node, factor = reader, factor * step[0]
        steps.append((node, factor))
    return steps


def _scaled_to(node: ir.Node, wanted: float) -> ir.Node | None:
    """The node that makes `wanted` times what a node makes."""
    close = (end for end, factor in _scales_behind(node) if abs(factor / wanted - 1) < _CLOSE)
    return next(close, None)


def _gated(gate: ir.Value, sources: Sources, wanted: float) -> tuple[ir.Value, ir.Node] | None:
    """The source x, and the node that makes `wanted` x times the gate, factors in between counted."""
    maker = gate.producer()
    assert maker is not None
    last, factor = _scales_behind(maker)[-1]
    product = sole_reader(last.outputs[0])
    if product is None or not is_standard(product, "Mul"):
        return None
    other = product.inputs[1 if product.inputs[0] is last.outputs[0] else 0]
    for x, (scale, shift) in (_sources(other) if other is not None else {}).items():
        if x in sources and shift == 0 and scale > 0:
            end = _scaled_to(product, wanted / (factor * scale))
            return (x, end) if end is not None else None
    return None


def _leaky_slope(node: ir.Node) -> tuple[ir.Value, float] | None:
    """Input and slope of what is a LeakyRelu."""
    if len(node.inputs) != 2:
        return None
    first, second = node.inputs
    if first is None or second is None:
        return None
    if is_standard(node, "PRelu"):
        slope = fixed(second)
        if slope is None or slope.size == 0 or (slope != slope.reshape(-1)[0]).any():
            return None
        return first, float(slope.reshape(-1)[0])
    if is_standard(node, "Max"):
        for x, scaled in ((first, second), (second, first)):
            scale, shift = _sources(scaled).get(x, (1.0, 0.0))
            if 0 <= scale < 1 and shift == 0:
                return x, scale
    if is_standard(node, "Sub") and (bounded := behind(first, "Relu")) is not None:
        for relu, (scale, shift) in _sources(second).items():
            if shift == 0 and behind(behind(relu, "Relu"), "Neg") is bounded:
                return bounded, scale
    return None
