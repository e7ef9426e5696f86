"""Conv and Gemm nodes whose weights are codes, and how each of their channels is scaled and moved.

    y = s_w W * x + b   ->   f y + g = (f s_w) W * x + (f b + g)

With codes of int8 on both sides, as the kernels of ONNX Runtime take them, the bias is int32 in units of s_x s_w; with
weights of floating-point codes it is a float32 vector.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..quantization.affine import LEAST_SCALE, quantize_bias
from .constants import array_of
from .rewriting import add_array, set_names

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

_FLOAT_CODES = (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
_DECODERS = ("DequantizeLinear", "DequantizeMiniFloat")
_NUMBERS = np.finfo(np.float32)


@dataclasses.dataclass(frozen=True)
class ProductOnCodes(abc.ABC):
    """A Conv or Gemm whose weight is decoded from codes.

    Attributes:
        node: It.
        decode: The node that decodes its weight.
        axis: Of the weight's output channels.
        scale: float32 [N], or [N, 1], or of one element, of its weight.
        bias: float64 [N].
    """

    node: ir.Node
    decode: ir.Node
    axis: int
    scale: Floats
    bias: Doubles

    @property
    def channels(self) -> int:
        """N."""
        return len(self.bias)

    @property
    def has_channels(self) -> bool:
        """Whether the weight has a scale a channel."""
        return self.scale.ndim > 0 and self.scale.size == self.channels

    def apply(self, graph: ir.Graph, maps: Sequence[tuple[Doubles, Doubles]]) -> str | None:
        """Let each channel give factor y + offset in place of y, by the last map that fits; or why none does."""
        factor, offset, mended = np.ones(self.channels), np.zeros(self.channels), False
        for tried, moved in maps:
            fits = self._fits(self.scale.reshape(-1) * tried, tried * self.bias + moved)
            factor, offset = np.where(fits, tried, factor), np.where(fits, moved, offset)
            mended = mended or bool(fits.any())
        if not mended:
            return self._unfit()
        scale = self.scale
        if self.has_channels:
            scale = (scale.reshape(-1) * factor).astype(np.float32).reshape(scale.shape)
        self.node.resize_inputs(3)
        self._mend(graph, scale, factor * self.bias + offset)
        return None

    @abc.abstractmethod
    def _fits(self, scale: Doubles, bias: Doubles) -> npt.NDArray[np.bool_]:
        """Where a channel can have this scale and bias."""

    @abc.abstractmethod
    def _unfit(self) -> str:
        """The reason where none can."""

    @abc.abstractmethod
    def _mend(self, graph: ir.Graph, scale: Floats, bias: Doubles) -> None:
        """Set the scales of the weight, where it has one a channel, and the bias."""

    def _read(self, graph: ir.Graph, index: int, value: ir.Value) -> None:
        """Let the node read a value as an input."""
        old = self.node.inputs[index]
        self.node.replace_input_with(index, value)
        _remove_unread(graph, old)

    def _decoded(self, graph: ir.Graph, index: int, node: ir.Node, like: ir.Value | None) -> None:
        """Let the node read what a new one decodes, of the shape of `like`."""
        output = node.outputs[0]
        set_names(node, graph, f"{node.name}", f"{node.name}_dequantized")
        output.type = ir.TensorType(ir.DataType.FLOAT)
        output.shape = like.shape if like is not None else None
        graph.insert_before(self.node, node)
        self._read(graph, index, output)


@dataclasses.dataclass(frozen=True)
class IntegerProduct(ProductOnCodes):
    """A Conv or Gemm on codes of int8.

    Attributes:
        x_scale: Scale of its input.
        magnitude: float64 [N], sums of the magnitudes of its codes.
    """

    x_scale: np.float32
    magnitude: Doubles

    def _fits(self, scale: Doubles, bias: Doubles) -> npt.NDArray[np.bool_]:
        """Where the code of a bias and the largest sum of products beside it fit int32, in units of whole steps."""
        room = (2**31 - 1) / 1.001 - 255 * self.magnitude
        fits: npt.NDArray[np.bool_] = (np.abs(bias) <= room * scale * float(self.x_scale)) & (scale >= LEAST_SCALE)
        return fits

    def _unfit(self) -> str:
        return "the bias would not fit int32"

    def _mend(self, graph: ir.Graph, scale: Floats, bias: Doubles) -> None:
        codes, bias_scale = quantize_bias(bias, self.x_scale, scale)
        if self.has_channels:
            self._decode(graph, 1, self.decode.inputs[0], scale, np.int8, self.axis)
        self._decode(graph, 2, add_array(graph, f"{self.node.name}_bias_restored", codes), bias_scale, np.int32, 0)

    def _decode(
        self, graph: ir.Graph, index: int, codes: ir.Value | None, scale: Floats, dtype: npt.DTypeLike, axis: int
    ) -> None:
        name = f"{self.node.name}_{index}_restored"
        operands = [
            codes,
            add_array(graph, f"{name}_scale", scale),
            add_array(graph, f"{name}_zero_point", np.zeros(scale.shape, dtype)),
        ]
        attributes = {"axis": axis} if scale.ndim else {}
        domain = self.decode.domain
        new = ir.node("DequantizeLinear", operands, attributes=attributes, name=name, domain=domain)
        self._decoded(graph, index, new, codes)


class MinifloatProduct(ProductOnCodes):
    """A Conv or Gemm whose weight is of floating-point codes, beside a bias of float32."""

    def _fits(self, scale: Doubles, bias: Doubles) -> npt.NDArray[np.bool_]:
        fits: npt.NDArray[np.bool_] = (np.abs(bias) <= _NUMBERS.max) & (scale >= _NUMBERS.tiny) & (scale <= 2.0**100)
        return fits

    def _unfit(self) -> str:
        return "the scales or the bias would not fit float32"

    def _mend(self, graph: ir.Graph, scale: Floats, bias: Doubles) -> None:
        name = f"{self.node.name}_restored"
        if self.has_channels:
            inputs = [self.decode.inputs[0], add_array(graph, f"{name}_scale", scale)]
            attributes = list(self.decode.attributes.values())
            node = ir.Node(self.decode.domain, self.decode.op_type, inputs, attributes,
                           overload=self.decode.overload, num_outputs=1, name=name)  # fmt: skip
            self._decoded(graph, 1, node, self.decode.outputs[0])
        self._read(graph, 2, add_array(graph, f"{name}_bias", bias.astype(np.float32)))


def read_product(node: ir.Node) -> ProductOnCodes | str:
    """What a node computes, or why its channels are left."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("Conv", "Gemm"):
        return "neither Conv nor Gemm"
    weight = _decoder(node.inputs[1])
    codes, scale = (array_of(value) for value in weight.inputs[:2]) if weight is not None else (None, None)
    if weight is None or codes is None or scale is None:
        return "does not compute on codes"
    if node.op_type == "Gemm" and (
        node.attributes.get_float("alpha", 1.0) != 1 or node.attributes.get_float("beta", 1.0) != 1
    ):
        return "Gemm with alpha or beta"
    axis = int(node.op_type == "Gemm" and not node.attributes.get_int("transB", 0))
    by_function = weight.op_type == "DequantizeMiniFloat"
    bias = _read_bias(node, codes.shape[0 if by_function else axis])
    if bias is None:
        return "the bias is no constant"
    if scale.size not in (1, len(bias)):
        return "the weight has scales in blocks"
    if by_function or codes.dtype in _FLOAT_CODES:
        return MinifloatProduct(node, weight, axis, scale, bias)
    if codes.dtype != np.int8:
        return "the weight is not of codes of 8 bits"
    x = _decoder(node.inputs[0])
    x_scale = array_of(x.inputs[1]) if x is not None else None
    if x_scale is None or x_scale.size != 1:
        return "does not compute on codes"
    rows = np.moveaxis(codes, axis, 0).reshape(codes.shape[axis], -1)
    magnitude = np.abs(rows.astype(np.int16)).sum(axis=1, dtype=np.float64)
    return IntegerProduct(node, weight, axis, scale, bias, np.float32(x_scale.reshape(-1)[0]), magnitude)


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
    return node if node is not None and node.op_type in _DECODERS else None


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
