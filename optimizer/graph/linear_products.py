"""Products with a constant weight that take over affine maps behind them and ahead of them.

With W as [out, in], f and g one number an output channel, s and t one an input channel:

    behind:  f (W x + b) + g   = (f W) x + (f b + g)
    ahead:   W (s x + t) + b   = (W s) x + (W t + b)

A Conv that pads puts zeros beside s x + t, so its t has to stay; so has that of a ConvTranspose, whose outputs do not
all meet the same taps.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from .affine_chains import Affine, Doubles
from .constants import constant_of
from .matching import Floats, fixed, input_of, is_fixed, is_standard, least_rank, like
from .rewriting import add_array


def is_product(node: ir.Node) -> bool:
    """Whether the operator is one of those that `Product` is about."""
    return is_standard(node, "Conv", "ConvTranspose", "Gemm", "MatMul") and len(node.inputs) > 1


class Product:
    """A Conv, ConvTranspose, Gemm or MatMul. Its weight is read when something is folded into it.

    Attributes:
        node: The node.
        refusal: Why its weight or bias cannot change; None where they can.
        has_bias: Whether it takes a bias; that of a MatMul is an Add behind it.
    """

    def __init__(self, node: ir.Node) -> None:
        self.node = node
        self._is_conv = _is_conv(node)
        self._flipped = is_standard(node, "ConvTranspose", "MatMul") or (
            is_standard(node, "Gemm") and not node.attributes.get_int("transB", 0)
        )
        self.has_bias = not is_standard(node, "MatMul")
        self.refusal = self._refuse()

    def _refuse(self) -> str | None:
        weight, bias = self.node.inputs[1], input_of(self.node, 2)
        if weight is None or not is_fixed(weight):
            return "its weight is no constant of float32"
        if len(weight.uses()) > 1 or weight.is_graph_output():
            return "its weight is read by others"
        sizes = _shape(weight)
        if math.prod(sizes) == 0 or len(sizes) < (3 if self._is_conv else 2):
            return "its weight has no columns"
        if not self._is_conv and len(sizes) > 2:
            return "its weight is no matrix"
        if self._is_conv and sizes[0] % self._group:
            return "its channels do not divide into its groups"
        if bias is not None and not is_fixed(bias):
            return "its bias is no constant of float32"
        if bias is not None and math.prod(_shape(bias)) not in (1, self.outputs):
            return "its bias is not one number a channel"
        if bias is not None and math.prod(_shape(bias)) > 1 and _shape(bias)[-1] != self.outputs:
            return "its bias is not one number a channel"
        return None

    @property
    def _group(self) -> int:
        return max(self.node.attributes.get_int("group", 1), 1) if self._is_conv else 1

    @property
    def outputs(self) -> int:
        """Channels or columns of the result."""
        first, second = _shape(self.node.inputs[1])[:2]
        return second * self._group if self._flipped else first

    @property
    def inputs(self) -> int:
        """Channels or columns of what it reads."""
        first, second = _shape(self.node.inputs[1])[:2]
        return first if self._flipped else second * self._group

    def behind(self, map_: Affine) -> Affine | None:
        """A map of its result as one number a channel; None where it is another."""
        return self._per_channel(map_, self.node.outputs[0], self.outputs)

    def ahead(self, map_: Affine, x: ir.Value) -> Affine | None:
        """A map of `x`, whose result it reads, as one number a channel; None where it is another.

        Nor may it be one that broadcasts `x`, in rank or in channels, which the product would then read as it is.
        """
        if self.node.attributes.get_int("transA", 0) or len(map_.shape) > least_rank(x):
            return None
        found = self._per_channel(map_, x, self.inputs)
        widens = math.prod(map_.shape) > 1 and not self._has_channels(x)
        return None if widens else found

    def _has_channels(self, x: ir.Value) -> bool:
        """Whether a value is known to have as many channels as the product reads."""
        x = like(x)
        if x.shape is not None:
            sizes = list(x.shape)[1:2] if self._is_conv else list(x.shape)[-1:]
            return sizes == [self.inputs]
        maker = x.producer()
        if maker is None or not is_product(maker) or _is_conv(maker) != self._is_conv:
            return False
        made = Product(maker)
        return made.refusal is None and made.outputs == self.inputs

    def _per_channel(self, map_: Affine, value: ir.Value | None, channels: int) -> Affine | None:
        if self._is_conv:
            rank, axis = len(_shape(self.node.inputs[1])), 1
        else:
            rank = 2 if is_standard(self.node, "Gemm") else max(least_rank(value), 1)
            axis = rank - 1
        shape = (1,) * (rank - len(map_.shape)) + map_.shape
        if len(shape) != rank or any(size != 1 for at, size in enumerate(shape) if at != axis):
            return None
        if shape[axis] not in (1, channels):
            return None
        scale, shift = (
            np.broadcast_to(np.broadcast_to(part, map_.shape).reshape(-1), channels)
            for part in (map_.scale, map_.shift)
        )
        return Affine(scale, shift, (channels,))

    def refuse_shift(self) -> str | None:
        """Why a sum ahead of it cannot go into its bias."""
        if is_standard(self.node, "ConvTranspose"):
            return "the outputs of a ConvTranspose do not all meet the sum the same number of times"
        if is_standard(self.node, "Conv") and self._pads():
            return "the Conv pads with zeros, beside which the sum must stay"
        if not self.has_bias:
            return "the MatMul has no bias"
        return None

    def _pads(self) -> bool:
        attributes = self.node.attributes
        if attributes.get_string("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
            return any(size > 1 for size in _shape(self.node.inputs[1])[2:])
        return any(attributes.get_ints("pads", ()))

    def folded(self, ahead: Affine | None = None, behind: Affine | None = None) -> tuple[Floats, Floats] | None:
        """Weight and bias with maps of one number a channel in them; None where they would not be finite."""
        weight = fixed(self.node.inputs[1])
        assert weight is not None
        with np.errstate(all="ignore"):
            matrix, bias = self._as_matrix(weight).astype(np.float64), self._bias()
            if ahead is not None:
                by_group = (self._group, 1, -1, 1)
                alpha = self.node.attributes.get_float("alpha", 1.0) if is_standard(self.node, "Gemm") else 1.0
                bias = bias + alpha * (matrix * ahead.shift.reshape(by_group)).sum((2, 3)).reshape(-1)
                matrix *= ahead.scale.reshape(by_group)
            if behind is not None:
                bias = bias * behind.scale + behind.shift
                matrix *= behind.scale.reshape(self._group, -1, 1, 1)
            result = self._from_matrix(matrix, weight.shape), bias.astype(np.float32)
        return result if all(np.isfinite(each).all() for each in result) else None

    def take(self, weight: Floats, bias: Floats) -> None:
        """Compute with these."""
        self._set(1, weight, "weight")
        if bias.any() or input_of(self.node, 2) is not None:
            self.node.resize_inputs(3)
            self._set(2, bias, "bias")
            if is_standard(self.node, "Gemm"):
                self.node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)

    def _as_matrix(self, weight: Floats) -> Floats:
        """The weight as [group, out, in, taps]."""
        array = weight.reshape(self._group, weight.shape[0] // self._group, weight.shape[1], -1)
        return array.swapaxes(1, 2) if self._flipped else array

    def _from_matrix(self, matrix: Doubles, shape: tuple[int, ...]) -> Floats:
        array = matrix.swapaxes(1, 2) if self._flipped else matrix
        return np.ascontiguousarray(array.reshape(shape), np.float32)

    def _bias(self) -> Doubles:
        bias = fixed(input_of(self.node, 2))
        if bias is None:
            return np.zeros(self.outputs)
        beta = self.node.attributes.get_float("beta", 1.0) if is_standard(self.node, "Gemm") else 1.0
        return np.broadcast_to(beta * bias.reshape(-1).astype(np.float64), self.outputs)

    def _set(self, index: int, array: Floats, name: str) -> None:
        graph = self.node.graph
        assert isinstance(graph, ir.Graph)
        old = self.node.inputs[index]
        self.node.replace_input_with(index, add_array(graph, f"{self.node.outputs[0].name}_folded_{name}", array))
        if old is not None and old.is_initializer() and not old.uses() and not old.is_graph_output():
            del graph.initializers[old.name or ""]


def _is_conv(node: ir.Node) -> bool:
    return is_standard(node, "Conv", "ConvTranspose")


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    tensor = constant_of(value)
    assert tensor is not None
    return tuple(tensor.shape.numpy())
