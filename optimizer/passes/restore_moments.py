"""Channels of a QDQ model get the mean and deviation back that they have in float.

Rounding changes both, layer by layer. A BatchNormalization could measure them anew, but by now it is folded into the
Conv before it, y = s_w s_x (W8 * x8) + b. So it is the scales of the weight and the bias that take the map
y' = f y + g of `quantization.moments`:

    s_w' = f s_w,   b' = f b + g,   b' in int32 units of s_x s_w'.

The codes of the weight stay as they are, and so do the operators that ONNX Runtime makes of the group. What is
compared is the result of the Conv, before a Relu or Clip that saturation replaces. A layer must be mended before
those behind it are measured: `restore_in_order`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..quantization.affine import LEAST_SCALE, quantize_bias
from ..quantization.moments import ChannelMoments, restoring_map
from .plan import array_of
from .rewriting import add_array

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Measure = Callable[[ir.Model, Sequence[str]], Mapping[str, ChannelMoments]]
"""(model, names of values) -> their moments along the channels, axis 1, on the calibration data."""

_RENAMED = "_float"
"""What `PlaceQdq` appends to a value whose name its decoded form took over, as an output of the graph."""


class RestoreMoments:
    """Mend Conv and Gemm nodes of a QDQ model.

    Cases: a weight with a scale a channel, scales and bias; one scale in all, the bias alone; a Conv without bias
    gets one. Left: weights that are no codes of 8 bits, nodes without moments, biases that would not fit.

    Args:
        reference: Moments of the float model, by the name of the value.

    Attributes:
        left: Names of nodes that were left, and why.
    """

    def __init__(self, reference: Mapping[str, ChannelMoments]) -> None:
        self.left: dict[str, str] = {}
        self._reference = reference

    def __call__(self, model: ir.Model, measured: Mapping[str, ChannelMoments], nodes: Iterable[ir.Node]) -> bool:
        """Mend these nodes; whether anything changed.

        Args:
            model: The QDQ model.
            measured: Moments of its values, by name.
            nodes: Of its main graph.
        """
        changed = False
        for node in nodes:
            reason = self._mend(model.graph, node, measured)
            if reason is None:
                changed = True
            else:
                self.left[node.name or node.op_type] = reason
        return changed

    def find(self, model: ir.Model) -> list[ir.Node]:
        """The nodes that can be mended, in the order of the graph."""
        return [
            node
            for node in model.graph
            if not isinstance(_Product.read(node), str) and self._name(node.outputs[0]) in self._reference
        ]

    def _name(self, value: ir.Value) -> str:
        """Of the same value in the float model."""
        name = value.name or ""
        return name if name in self._reference else name.removesuffix(_RENAMED)

    def _mend(self, graph: ir.Graph, node: ir.Node, measured: Mapping[str, ChannelMoments]) -> str | None:
        product = _Product.read(node)
        if isinstance(product, str):
            return product
        output = node.outputs[0]
        want, have = self._reference.get(self._name(output)), measured.get(output.name or "")
        if want is None or have is None:
            return "no moments"
        maps = [restoring_map(want, have, mean_alone=alone) for alone in (True, False)[: 1 + product.has_channels]]
        sound = [found for found in maps if found is not None and len(found[0]) == product.channels]
        if not sound:
            return "the moments are not finite numbers, one a channel"
        return product.apply(graph, sound)


@dataclasses.dataclass(frozen=True)
class _Product:
    """A Conv or Gemm on codes.

    Attributes:
            node: It.
        decode: The DequantizeLinear of its weight.
        axis: Of the weight's output channels.
        x_scale: Scale of its input.
        scale: float32 [N] or of one element, of its weight.
        magnitude: float64 [N], sums of the magnitudes of its codes.
        bias: float64 [N].
    """

    node: ir.Node
    decode: ir.Node
    axis: int
    x_scale: np.float32
    scale: Floats
    magnitude: Doubles
    bias: Doubles

    @property
    def channels(self) -> int:
        """N."""
        return len(self.bias)

    @property
    def has_channels(self) -> bool:
        """Whether the weight has a scale a channel."""
        return self.scale.ndim == 1 and len(self.scale) == self.channels

    @classmethod
    def read(cls, node: ir.Node) -> _Product | str:
        """What the node computes, or why it is left."""
        if node.domain not in ("", "ai.onnx") or node.op_type not in ("Conv", "Gemm"):
            return "neither Conv nor Gemm"
        x, weight = (_decoder(node.inputs[index]) for index in (0, 1))
        x_scale, scale = (array_of(decoder.inputs[1]) if decoder is not None else None for decoder in (x, weight))
        if x_scale is None or scale is None or weight is None or x_scale.size != 1:
            return "does not compute on codes"
        codes = array_of(weight.inputs[0])
        if codes is None or codes.dtype != np.int8:
            return "the weight is not of codes of int8"
        if node.op_type == "Gemm" and (
            node.attributes.get_float("alpha", 1.0) != 1 or node.attributes.get_float("beta", 1.0) != 1
        ):
            return "Gemm with alpha or beta"
        axis = int(node.op_type == "Gemm" and not node.attributes.get_int("transB", 0))
        bias = _read_bias(node, codes.shape[axis])
        if bias is None:
            return "the bias is no constant"
        rows = np.moveaxis(codes, axis, 0).reshape(codes.shape[axis], -1)
        magnitude = np.abs(rows.astype(np.int16)).sum(axis=1, dtype=np.float64)
        return cls(node, weight, axis, np.float32(x_scale.reshape(-1)[0]), scale, magnitude, bias)

    def apply(self, graph: ir.Graph, maps: Sequence[tuple[Doubles, Doubles]]) -> str | None:
        """Let each channel give factor y + offset in place of y, by the last map with which its bias fits int32."""
        factor, offset, mended = np.ones(self.channels), np.zeros(self.channels), False
        for tried, moved in maps:
            fits = self._fits(self.scale * tried, tried * self.bias + moved)
            factor, offset = np.where(fits, tried, factor), np.where(fits, moved, offset)
            mended = mended or bool(fits.any())
        if not mended:
            return "the bias would not fit int32"
        bias = factor * self.bias + offset
        scale = (self.scale * factor).astype(np.float32) if self.has_channels else self.scale
        codes, bias_scale = quantize_bias(bias, self.x_scale, scale)
        if self.has_channels:
            self._decode(graph, 1, self.decode.inputs[0], scale, np.int8, self.axis)
        self.node.resize_inputs(3)
        self._decode(graph, 2, add_array(graph, f"{self.node.name}_bias_restored", codes), bias_scale, np.int32, 0)
        return None

    def _fits(self, scale: Doubles, bias: Doubles) -> npt.NDArray[np.bool_]:
        """Where the code of a bias and the largest sum of products beside it fit int32, in units of whole steps."""
        room = (2**31 - 1) / 1.001 - 255 * self.magnitude
        fits: npt.NDArray[np.bool_] = (np.abs(bias) <= room * scale * float(self.x_scale)) & (scale >= LEAST_SCALE)
        return fits

    def _decode(
        self, graph: ir.Graph, index: int, codes: ir.Value | None, scale: Floats, dtype: npt.DTypeLike, axis: int
    ) -> None:
        """Let the node read these codes as an input."""
        name = f"{self.node.name}_{index}_restored"
        operands = [
            codes,
            add_array(graph, f"{name}_scale", scale),
            add_array(graph, f"{name}_zero_point", np.zeros(scale.shape, dtype)),
        ]
        attributes = {"axis": axis} if scale.ndim else {}
        decode = ir.node("DequantizeLinear", operands, attributes=attributes, name=name)
        output = decode.outputs[0]
        output.name, output.type = f"{name}_dequantized", ir.TensorType(ir.DataType.FLOAT)
        assert codes is not None
        output.shape = codes.shape
        graph.insert_before(self.node, decode)
        old = self.node.inputs[index]
        self.node.replace_input_with(index, output)
        _remove_unread(graph, old)


def _remove_unread(graph: ir.Graph, value: ir.Value | None) -> None:
    """Take away a constant that nobody reads any more, and what decodes it."""
    if value is None or value.uses() or value.is_graph_output() or value.is_graph_input():
        return
    node = value.producer()
    if node is None:
        graph.initializers.pop(value.name or "", None)
        return
    inputs = list(node.inputs)
    graph.remove(node, safe=True)
    for read in inputs:
        _remove_unread(graph, read)


def _decoder(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _read_bias(node: ir.Node, channels: int) -> Doubles | None:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return np.zeros(channels)
    decoder = _decoder(value)
    parts = [value] if decoder is None else list(decoder.inputs[:2])
    arrays = [array_of(part) for part in parts]
    bias = np.ones(())
    for array in arrays:
        if array is None:
            return None
        bias = bias * array.astype(np.float64)
    return np.broadcast_to(bias.reshape(-1), channels) if bias.size in (1, channels) else None


def restore_in_order(model: ir.Model, reference: Mapping[str, ChannelMoments], measure: Measure) -> RestoreMoments:
    """Mend layer by layer, each measured with all before it mended.

    Args:
        model: The QDQ model, changed in place.
        reference: Moments of the float model, by the name of the value, along the channels.
        measure: Gives moments of values of a model, on the same data. Called once for all nodes of one depth.

    Returns:
        The pass, which says what it left.
    """
    restore = RestoreMoments(reference)
    nodes = restore.find(model)
    depths = _depths(model.graph, set(nodes))
    for depth in sorted(set(depths.values())):
        group = [node for node in nodes if depths[node] == depth]
        restore(model, measure(model, [node.outputs[0].name or "" for node in group]), group)
    return restore


def _depths(graph: ir.Graph, nodes: set[ir.Node]) -> dict[ir.Node, int]:
    """How many of the nodes lie before each of them, at most, on a way through the graph."""
    behind: dict[ir.Node, int] = {}
    for node in graph:
        producers = [value.producer() for value in node.inputs if value is not None]
        reach = max((behind.get(producer, 0) for producer in producers if producer is not None), default=0)
        behind[node] = reach + (node in nodes)
    return {node: behind[node] for node in nodes}
