"""Channels get other axes, in constants that are there: the model computes the same on turned channels.

Of residual streams, by a matrix Q with Q Q' = I:

    norm(x) g W + b   =   norm(x Q) Q' g W + b,      x + y V + c   ->   x Q + y (V Q) + c Q

A norm by the root mean square sees the length of x alone, which Q keeps, once its scale g is in the products that read
it (Ashkboos et al. 2024, SliceGPT, arXiv 2401.15024, section 3). One that takes the mean off first does so with a Q
that leaves a vector of ones as it is: (x - mean(x) 1) Q = x Q - mean(x Q) 1. Its shift h becomes (h / g) Q. Of the
values of attentions, P v with a row of probabilities P and values v a head:

    (P v) V   =   (P v R) R' V

With matrices that spread each channel over all, none holds outliers any more (QuaRot, arXiv 2404.00456), which
activations that are rounded gain by most.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..graph.constants import constant_of, copy_of, mark_constants
from ..graph.head_values import find_head_values
from ..graph.matching import Floats, fixed
from ..graph.residual_stream import Side, Stream, StreamNorm, find_streams
from ..graph.rewriting import SharedArrays, add_initializer, required
from ..model_io.names import names_of
from ..quantization.transforms.hadamard import Orthogonal, orthogonal
from .base import GraphPass
from .remove_unused import remove_unused

Doubles = npt.NDArray[np.float64]


class RotateChannels(GraphPass):
    """Turn channels by orthogonal matrices, the float model staying what it is.

    Cases: streams that tables, products and constants write, and that products read, through norms or as they are; of
    any sizes, with biases, positions that are added, and weights that others read too, which get copies. Values of
    heads, which groups of queries may share. Left, as a whole: streams of which other nodes, or the user, would see the
    turned channels, and norms behind the sums; values that are kept for later.

    Tensors that hold turned channels are called otherwise from then on.

    Attributes:
        rotated: The streams, each with its matrix.
        attentions: How many have turned values.
        copied: Bytes of constants that there are more of: a table that is the last weight, too, is two from the moment
            that the latter takes the scale of a norm.
    """

    def __init__(self) -> None:
        self.rotated: list[tuple[Stream, Orthogonal]] = []
        self.attentions = self.copied = 0

    def rewrite(self, model: ir.Model) -> bool:
        """Rotate; whether anything changed."""
        mark_constants(model)
        before, edits = _bytes(model), _Edits(model.graph)
        values, reasons = find_head_values(model)
        for stream in find_streams(model):
            where, why = (stream.where, stream.why) if stream.why else _unscaled(stream)
            if why:
                self.left[where] = why
                continue
            matrix = orthogonal(stream.size, keeps_mean=stream.centred)
            _rotate(stream, matrix, edits)
            self.rotated.append((stream, matrix))
        matrices = {width: orthogonal(width) for width in {each.width for each in values}}
        for each in values:
            for side in (*each.writes, each.reads):
                edits.turn(side, matrices[each.width])
        turned = [value for stream, _ in self.rotated for value in stream.tensors]
        _rename(model.graph, [*turned, *(value for each in values for value in each.tensors)])
        self.attentions = len(values)
        self.left.update(reasons)
        changed = bool(self.rotated or values)
        if changed:
            remove_unused(model)
            mark_constants(model)
            self.copied = max(0, _bytes(model) - before)
        return changed


def _rename(graph: ir.Graph, tensors: Iterable[ir.Value]) -> None:
    """Give tensors that are turned other names, so that nobody compares them with those of the original."""
    names = names_of(graph)
    for value in dict.fromkeys(tensors):
        old, value.name = value.name, names.value(f"{value.name}_rotated")
        names.release(old)


def _unscaled(stream: Stream) -> tuple[str, str]:
    """The norm whose shift cannot be turned, and why."""
    for norm in stream.norms:
        shift = _shift(norm)
        if shift is not None and (shift[_scale(norm) == 0] != 0).any():
            return norm.node.name or "", "a norm adds to channels whose scale is 0"
    return "", ""


def _rotate(stream: Stream, matrix: Orthogonal, edits: _Edits) -> None:
    for side in (*stream.reads, *stream.writes):
        edits.turn(side, matrix)
    for norm in stream.norms:
        scale, shift = _scale(norm), _shift(norm)
        if shift is not None:
            moved = np.divide(shift, scale, out=np.zeros_like(shift), where=scale != 0)
            edits.put(norm.node, required(norm.shift), matrix.turn(moved))
        edits.put(norm.node, norm.scale, np.ones_like(scale))


class _Edits:
    """Constants that nodes read in place of others; those that are alike are one."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph, self._arrays = graph, SharedArrays(graph)
        self._made: dict[tuple[ir.Value, Hashable], ir.Value] = {}

    def put(self, node: ir.Node, index: int, array: Doubles) -> None:
        """Let a node read these numbers."""
        name = f"{required(node.inputs[index]).name}_rotated"
        node.replace_input_with(index, self._arrays.add(name, array.astype(np.float32)))

    def turn(self, side: Side, matrix: Orthogonal) -> None:
        """Turn a constant along an axis, which takes the scale of a norm before."""
        scale = None if side.norm is None else _scale(side.norm)
        scale = None if scale is None or (scale == 1).all() else scale
        key = matrix, side.axis, None if scale is None else scale.tobytes()
        value = required(side.node.inputs[side.index])
        if (value, key) not in self._made:
            tensor = _changed(required(constant_of(value)), lambda array: matrix.turn_along(array, side.axis, scale))
            self._made[value, key] = add_initializer(self._graph, f"{value.name}_rotated", tensor)
        side.node.replace_input_with(side.index, self._made[value, key])


def _changed(tensor: ir.TensorProtocol, change: Callable[[Floats], Floats]) -> ir.TensorProtocol:
    """A tensor of float32 and the same shape; what waits in a file, or to be computed, goes on to."""
    if isinstance(tensor, ir.ExternalTensor | ir.LazyTensor):
        shape = ir.Shape(tensor.shape.numpy())
        return ir.LazyTensor(lambda: ir.tensor(change(copy_of(tensor))), ir.DataType.FLOAT, shape)
    return ir.tensor(change(copy_of(tensor)))


def _scale(norm: StreamNorm) -> Doubles:
    return required(fixed(norm.node.inputs[norm.scale])).astype(np.float64)


def _shift(norm: StreamNorm) -> Doubles | None:
    return None if norm.shift is None else required(fixed(norm.node.inputs[norm.shift])).astype(np.float64)


def _bytes(model: ir.Model) -> int:
    return sum(required(value.const_value).nbytes for value in model.graph.initializers.values() if value.const_value)
