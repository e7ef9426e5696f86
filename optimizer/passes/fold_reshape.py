"""A constant weight behind a Reshape is a constant of that shape.

Constant folding copies what it folds, and so leaves large constants alone; but other axes of the same numbers are no
copy. They are read when the model is written, in whatever form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from .matching import is_standard
from .plan import constant_of, copy_of, nested_nodes
from .rewriting import add_initializer, required


class FoldReshape:
    """Let the readers of a Reshape of a constant, to a constant shape, read a constant.

    Left: constants and shapes that a caller may override, shapes that do not fit, outputs of graphs.
    """

    def __call__(self, model: ir.Model) -> bool:
        """Rewrite all graphs; whether anything changed."""
        nodes = [node for _, node in nested_nodes(model.graph, "") if is_standard(node, "Reshape")]
        return sum(map(_fold, nodes)) > 0


def _fold(node: ir.Node) -> bool:
    graph = node.graph
    if not isinstance(graph, ir.Graph) or len(node.inputs) != 2 or node.outputs[0].is_graph_output():
        return False
    tensor, wanted = (constant_of(value) if value is not None else None for value in node.inputs)
    if tensor is None or wanted is None:
        return False
    shape = _shape(tensor.shape.numpy(), wanted.numpy().tolist(), node.attributes.get_int("allowzero", 0) == 1)
    if shape is None:
        return False
    lazy = ir.LazyTensor(
        lambda: ir.Tensor(copy_of(tensor).reshape(shape), dtype=tensor.dtype), tensor.dtype, ir.Shape(shape)
    )
    folded = add_initializer(graph, f"{required(node.inputs[0]).name}_reshaped", lazy)
    ir.convenience.replace_all_uses_with(node.outputs[0], folded)
    graph.remove(node, safe=True)
    return True


def _shape(sizes: Sequence[int], wanted: Sequence[int], zero_is_a_size: bool) -> list[int] | None:
    """What a Reshape makes of these sizes; None where it would fail."""
    if any(size == 0 and index >= len(sizes) for index, size in enumerate(wanted)) and not zero_is_a_size:
        return None
    shape = [sizes[i] if size == 0 and not zero_is_a_size else size for i, size in enumerate(wanted)]
    known, total = math.prod(size for size in shape if size != -1), math.prod(sizes)
    if shape.count(-1) == 1 and known > 0 and total % known == 0:
        shape[shape.index(-1)] = total // known
    return shape if min(shape, default=0) >= 0 and math.prod(shape) == total else None
