"""Values of attention heads: the product that makes them, and the one that reads what heads make of them.

    merge(P split(x W + b)) V,    split: [batch, keys, heads width] -> [batch, heads, keys, width], perhaps repeated

P mixes keys, and nothing mixes the numbers of a head between the two products, so each head's may be turned by the same
matrix R in W and b, and back in V. What is between is told by tries (see `trial`).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from .constants import constant_of
from .matching import is_fixed, is_standard, opset_of
from .projection import is_private
from .residual_stream import Side
from .rewriting import required
from .trial import Trial, UnknownError, numbered, places

_MOVES = ("Expand", "Identity", "Reshape", "Squeeze", "Tile", "Transpose", "Unsqueeze")
_BATCH, _TOKENS = 2, 3


@dataclasses.dataclass(frozen=True)
class HeadValues:
    """Values that nobody sees but their attention.

    Attributes:
        width: Of a head.
        writes: Weight and bias that make them.
        reads: The weight that meets what heads make of them.
        tensors: All between the two.
    """

    width: int
    writes: list[Side]
    reads: Side
    tensors: list[ir.Value]


def find_head_values(model: ir.Model) -> tuple[list[HeadValues], dict[str, str]]:
    """Values of the attentions of a main graph, and why not others, by the name of the node that mixes keys.

    Args:
        model: With its constants marked.
    """
    found, left = [], {}
    names = {
        size.value: _TOKENS if axis else _BATCH
        for value in model.graph.inputs
        for axis, size in enumerate(value.shape or ())
        if isinstance(size, ir.SymbolicDim) and size.value is not None
    }
    trial = Trial(opset_of(model), names)
    for node in model.graph:
        context = _context(node)
        if context is None:
            continue
        try:
            found.append(_values(node, context, trial))
        except UnknownError as reason:
            left[context.name or ""] = str(reason)
    return found, left


def _context(out: ir.Node) -> ir.Node | None:
    """The product of two tensors of four axes whose merged heads a product by a matrix reads."""
    if not is_standard(out, "MatMul", "Gemm") or not _is_matrix(out.inputs[1]):
        return None
    node, merges = required(out.inputs[0]).producer(), False
    while is_standard(node, "Reshape", "Transpose", "Identity"):
        merges |= node.op_type == "Transpose"
        node = required(node.inputs[0]).producer()
    is_context = merges and is_standard(node, "MatMul") and constant_of(node.inputs[1]) is None
    return node if is_context else None


def _is_matrix(value: ir.Value | None) -> bool:
    return is_fixed(value) and len(required(constant_of(value)).shape) == 2


def _values(out: ir.Node, context: ir.Node, trial: Trial) -> HeadValues:
    """What is between two products; raises UnknownError, whose text is the reason."""
    heads, merged = required(context.inputs[1]), required(out.inputs[0])
    moved = _moved(heads)
    source = moved[-1]
    writes = _writes(source)
    sizes = trial.sizes(source)
    found = places(trial.array(heads, {source: numbered(sizes)}))
    if found.ndim != 4 or len(sizes) != 3:
        raise UnknownError("values are no heads of [batch, sequence, columns]")
    batch, count, tokens, width = found.shape
    first = found[0, :, 0, 0]
    rows = np.arange(batch * tokens).reshape(batch, 1, tokens, 1) * sizes[2]
    if (first % width).any() or (found != rows + first[:, None, None] + np.arange(width)).any():
        raise UnknownError("heads of values are not columns side by side")
    given = [batch, count, tokens, width]
    joined = places(trial.array(merged, {context.outputs[0]: numbered(given)}))
    wanted = np.arange(np.prod(given)).reshape(given).transpose(0, 2, 1, 3)
    if not np.array_equal(joined.reshape(-1), wanted.reshape(-1)) or joined.shape[-1] != count * width:
        raise UnknownError("heads are not merged by Transpose and Reshape")
    reads = Side(out, 1, 1 if out.attributes.get_int("transB", 0) else 0)
    made = [side.node.outputs[0] for side in writes]
    return HeadValues(width, writes, reads, [*dict.fromkeys([*made, *moved, *_merged(merged, context.outputs[0])])])


def _moved(value: ir.Value) -> list[ir.Value]:
    """Heads, and what they are moved from, back to what a projection makes, all of which is private."""
    found = [value]
    while True:
        node = found[-1].producer()
        if is_standard(node, "Concat"):
            raise UnknownError("values are kept for later, where others would read them turned")
        if not is_private(found[-1]):
            raise UnknownError("others read the values too")
        if not is_standard(node, *_MOVES):
            return found
        found.append(required(node.inputs[0]))


def _merged(value: ir.Value, context: ir.Value) -> list[ir.Value]:
    """Merged heads and all back to what heads make, which is private."""
    found = [value]
    while found[-1] is not context:
        found.append(required(required(found[-1].producer()).inputs[0]))
    if not all(map(is_private, found)):
        raise UnknownError("others read what heads make of the values")
    return found


def _writes(value: ir.Value) -> list[Side]:
    """Weight and bias of the product that makes a value."""
    node = value.producer()
    biases = []
    if is_standard(node, "Add"):
        biases = [Side(node, index, 0) for index in (0, 1) if is_fixed(node.inputs[index])]
        value = required(node.inputs[1 if biases and biases[0].index == 0 else 0])
        node = value.producer() if is_private(value) else None
    if is_standard(node, "Gemm") and len(node.inputs) > 2 and node.inputs[2] is not None:
        biases.append(Side(node, 2, 0))
    if not is_standard(node, "MatMul", "Gemm") or not _is_matrix(node.inputs[1]):
        raise UnknownError("values are not made by a product with a matrix of float32")
    columns = 0 if node.attributes.get_int("transB", 0) else 1
    size = required(constant_of(node.inputs[1])).shape.numpy()[columns]
    for bias in biases:
        tensor = constant_of(bias.node.inputs[bias.index]) if is_fixed(bias.node.inputs[bias.index]) else None
        if tensor is None or tuple(tensor.shape.numpy()) != (size,):
            raise UnknownError("the bias of values is no vector of float32")
    return [Side(node, 1, columns), *biases]
