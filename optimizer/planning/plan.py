"""Which nodes a recipe takes, and why not the others.

A node is taken when y = A W with a constant W of two axes that we can read: the second input of MatMul or Gemm, or,
where embeddings are wanted, the table of a Gather. The constant may stand behind Identity, Transpose and casts
between float32 and float16, which are undone by reading it accordingly, never by storing another copy, or be computed
of others (see `constants.py`). Conv and
ConvTranspose are taken where codes are no integers: no kernel reads theirs, so they only make the file smaller.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Collection, Iterable, Iterator

import onnx_ir as ir

from ..errors import option
from ..graph.constants import constant_of, is_constant, mark_constants, release, stored_constant, why_unread
from ..graph.rewriting import original_type, settings_of
from ..graph.weight_form import WeightForm, convolution_form, weight_form
from ..model_io.traverse import inner_graphs
from ..quantization.rtn import is_finite
from ..settings.node_settings import Kept, NodeSettings
from ..settings.recipe import Recipe

# Below this a weight is smaller than what a reader would notice, and its scales weigh as much as it does.
MIN_ELEMENTS = 1024
# A table read a row at a time costs memory, not time: only large ones are worth it.
MIN_TABLE_ELEMENTS = 1 << 20

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_CAST_FIRST = (ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
"""Types of stored weights that are read as what they are cast to."""
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_WITH_WEIGHTS = {"LSTM", "GRU", "RNN", "Einsum", "DeformConv"}


class _Unread(str, enum.Enum):
    """Why there is no weight to read, worded for people."""

    NO_CONSTANT = "no constant weight"
    OVERRIDABLE = "the weight is also a graph input, which a caller may override"

    def __str__(self) -> str:
        return self.value


UNOBSERVED = "inside a graph of a node, whose tensors cannot be observed"
"""Why scales that come from a calibration leave a node."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """A constant behind a node's input.

    Attributes:
        value: The initializer, or the output of a Constant node.
        tensor: Its data: of two axes, or of more whose first are the output channels of a Conv or the input channels
            of a ConvTranspose, each with a row of all the others.
        transposed: Whether output channels are its first axis, everything between it and the node counted.
        dtype: Its type as the node sees it, after casts.
    """

    value: ir.Value
    tensor: ir.TensorProtocol
    transposed: bool
    dtype: ir.DataType

    @property
    def K(self) -> int:
        """Length of the reduction."""
        shape = self.tensor.shape.numpy()
        return math.prod(shape[1:]) if self.transposed else shape[0]

    @property
    def N(self) -> int:
        """Output channels."""
        return self.tensor.shape.numpy()[0 if self.transposed else 1]


@dataclasses.dataclass(frozen=True)
class Decision:
    """What becomes of one node.

    Attributes:
        node: The node.
        path: Where it is: "" for the main graph, else the nodes and functions around it.
        taken: Whether it will be quantized.
        reason: Why not, for people; nothing goes by these words.
        parameters: Elements of its weight, 0 where it has none.
        weight: The constant, when taken.
        settings: What the recipe says, when taken.
        form: How a product reads its weight, when a weight-only scheme takes it.
        scheme: What it gets, when taken.
    """

    node: ir.Node
    path: str
    taken: bool
    reason: str = ""
    parameters: int = 0
    weight: Weight | None = None
    settings: NodeSettings | None = None
    form: WeightForm | None = None
    scheme: str = ""

    @property
    def node_name(self) -> str:
        """Name of the node, with where it is."""
        return f"{self.path}/{self.node.name}" if self.path else self.node.name or ""

    @property
    def op_type(self) -> str:
        """Operator of the node, as it was before the model was prepared."""
        return original_type(self.node)

    def but_left(self, reason: str) -> Decision:
        """The decision to leave the node after all, or for another reason."""
        return dataclasses.replace(self, taken=False, reason=reason, weight=None, settings=None, form=None, scheme="")


def without_fused(decisions: Iterable[Decision]) -> list[Decision]:
    """Decisions once a graph is fused: without those to leave a node that went into what was fused."""
    return [each for each in decisions if each.taken or each.node.graph is not None]


def plan(model: ir.Model, recipe: Recipe, does: str | None = None) -> list[Decision]:
    """Decide on every node that has, or could have, a weight.

    Args:
        model: The model.
        recipe: What is asked for.
        does: Given where the scheme takes products alone: how a reason begins that tells so, as "int8-dynamic does".

    Returns:
        One decision a node, in the order of the graph. Weights are read for it, one at a time: NaN is not rounded.
    """
    mark_constants(model)
    finite: dict[int, bool] = {}
    decisions = []
    for path, node in nested_nodes(model.graph, ""):
        decision = _decide(node, path, recipe, finite, does)
        if decision is not None:
            decisions.append(decision)
    return [*decisions, *inside_functions(model, ("MatMul", "Gemm", *_CONVOLUTIONS, *_WITH_WEIGHTS, "Gather"))]


def inside_functions(model: ir.Model, op_types: Collection[str]) -> list[Decision]:
    """Decisions to leave the standard operators of these types that are in bodies of functions."""
    return [
        Decision(node, function.name, False, f"inside function {function.name}; clean-up inlines functions")
        for function in model.functions.values()
        if function.domain != "onnxpress"
        for node in function.all_nodes()
        if node.domain in ("", "ai.onnx") and node.op_type in op_types
    ]


def has_weight(decision: Decision) -> bool:
    """Whether a node is about weights; a Gather may read anything."""
    return decision.op_type != "Gather" or decision.parameters > 0


def not_taken(who: str, op_type: str, path: str) -> str:
    """The reason to leave an operator with weights that a scheme has no form for."""
    hint = " (int8-static does)" if op_type in _CONVOLUTIONS and not path else ""
    if op_type == "Gather":
        return f"{who} not take embedding tables (int4 and int8 do, with {option('embeddings')})"
    return f"{who} not take {op_type}{hint}"


def nested_nodes(graph: ir.Graph, path: str) -> Iterator[tuple[str, ir.Node]]:
    """All nodes of a graph and of graphs inside them, each with the names of the nodes around it."""
    for node in graph:
        yield path, node
        for inner in inner_graphs(node):
            yield from nested_nodes(inner, f"{path}/{node.name}" if path else node.name or node.op_type)


def as_asked(decisions: Iterable[Decision], recipe: Recipe) -> list[Decision]:
    """The decisions, where nodes that the recipe keeps in float say so, whatever else there is against them."""

    def reason(decision: Decision) -> str:
        kept = settings_of(recipe, decision.node, decision.path)
        return kept if isinstance(kept, Kept) and kept.is_asked_for else decision.reason

    return [each if each.taken else dataclasses.replace(each, reason=reason(each)) for each in decisions]


def _decide(node: ir.Node, path: str, recipe: Recipe, finite: dict[int, bool], does: str | None) -> Decision | None:
    if node.domain not in ("", "ai.onnx") or any(map(is_constant, node.outputs)):
        return None
    if node.op_type in _WITH_WEIGHTS:
        return Decision(node, path, False, not_taken(does or "weight-only schemes do", node.op_type, path))
    if node.op_type in ("MatMul", "Gemm"):
        return _decide_product(node, path, recipe, finite)
    if node.op_type in _CONVOLUTIONS:
        return _decide_convolution(node, path, recipe, finite, does)
    if node.op_type == "Gather":
        return _decide_table(node, path, recipe, finite, does)
    return None


def _decide_product(node: ir.Node, path: str, recipe: Recipe, finite: dict[int, bool]) -> Decision:
    if len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
        return Decision(node, path, False, "lacks an input")
    flipped = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    weight = _find_weight(node.inputs[1], flipped)
    if isinstance(weight, str):
        left = _find_weight(node.inputs[0], False)
        if weight is _Unread.NO_CONSTANT and not isinstance(left, str):
            return Decision(node, path, False, "the constant is on the left", left.tensor.size)
        return Decision(node, path, False, weight)
    reason = _refuse(weight) or _refuse_rank(weight) or _refuse_values(weight, finite)
    if not math.isfinite(node.attributes.get_float("alpha", 1.0)):
        reason = "alpha is no finite number"
    size = weight.tensor.size
    if reason:
        return Decision(node, path, False, reason, size)
    if size < MIN_ELEMENTS:
        return Decision(node, path, False, f"fewer than {MIN_ELEMENTS} weights", size)
    settings = settings_of(recipe, node, path)
    if isinstance(settings, Kept):
        return Decision(node, path, False, settings, size)
    form = weight_form(recipe.form, settings.weight, weight.dtype, settings.accuracy_level)
    if isinstance(form, str):
        return Decision(node, path, False, form, size)
    return Decision(node, path, True, "", size, weight, settings, form, settings.weight.name)


def _decide_convolution(
    node: ir.Node, path: str, recipe: Recipe, finite: dict[int, bool], does: str | None
) -> Decision:
    settings = settings_of(recipe, node, path)
    if isinstance(settings, NodeSettings) and (does is not None or settings.weight.integer):
        who = does or "weight-only schemes of integers do"
        return Decision(node, path, False, not_taken(who, node.op_type, path))
    weight = _find_weight(node.inputs[1] if len(node.inputs) > 1 else None, True)
    if isinstance(weight, str):
        return Decision(node, path, False, weight)
    size, reason = weight.tensor.size, _refuse(weight)
    if reason is None and len(weight.tensor.shape) < 3:
        reason = f"weight of {len(weight.tensor.shape)} axes"
    if reason is None and not weight.transposed:
        reason = "the weight is behind a Transpose"
    reason = reason or _refuse_values(weight, finite)
    if reason is None and size < MIN_ELEMENTS:
        reason = f"fewer than {MIN_ELEMENTS} weights"
    if reason or isinstance(settings, Kept):
        return Decision(node, path, False, reason or str(settings), size)
    form = convolution_form(recipe.form, settings.weight, weight.dtype, weight.K)
    if isinstance(form, str):
        return Decision(node, path, False, form, size)
    return Decision(node, path, True, "", size, weight, settings, form, settings.weight.name)


def refuse_table(table: ir.TensorProtocol | None) -> str | None:
    """Why what a Gather reads is no table of floats that is worth to be quantized."""
    if table is None:
        return "no constant table"
    if not table.dtype.is_floating_point():
        return f"table of type {table.dtype.name}"
    return f"table of fewer than {MIN_TABLE_ELEMENTS:,} numbers" if table.size < MIN_TABLE_ELEMENTS else None


def _decide_table(node: ir.Node, path: str, recipe: Recipe, finite: dict[int, bool], does: str | None) -> Decision:
    table = _find_weight(node.inputs[0] if node.inputs else None, True)
    if isinstance(table, str):
        return Decision(node, path, False, table.replace("weight", "table"))
    size = table.tensor.size if table.tensor.dtype.is_floating_point() else 0
    if (unfit := refuse_table(table.tensor)) is not None:
        return Decision(node, path, False, unfit, size)
    if does is not None:
        return Decision(node, path, False, not_taken(does, node.op_type, path), size)
    settings = settings_of(recipe, node, path)
    if isinstance(settings, NodeSettings) and not settings.weight.has_kernel:
        return Decision(node, path, False, f"GatherBlockQuantized has no {settings.weight.name}", size)
    reason = _refuse(table) or _refuse_rank(table)
    if reason is None and isinstance(settings, Kept):
        reason = settings
    if reason is None and node.attributes.get_int("axis", 0) != 0:
        reason = "Gather along another axis than 0"
    if reason is None and not table.transposed:
        reason = "embedding table behind a Transpose"
    if reason is None and isinstance(settings, NodeSettings):
        if settings.weight.bits not in (4, 8):
            reason = f"GatherBlockQuantized has no {settings.weight.bits} bits"
        elif table.K % settings.weight.block_size:
            reason = f"rows of {table.K} are no multiple of the block size {settings.weight.block_size}"
    if reason is None and not recipe.embeddings:
        reason = f"embedding table; {option('embeddings')} takes it"
    reason = reason or _refuse_values(table, finite)
    if reason or isinstance(settings, Kept):
        return Decision(node, path, False, str(reason), size)
    return Decision(node, path, True, "", size, table, settings, scheme=settings.weight.name)


def _find_weight(value: ir.Value | None, flipped: bool) -> Weight | str:
    """The constant behind `value`, or why there is none. `flipped`: output channels come first in `value`."""
    cast: ir.DataType | None = None
    made: tuple[ir.Value, bool] | None = None
    while value is not None:
        if value.is_initializer() and value.is_graph_input():
            return _Unread.OVERRIDABLE
        tensor = stored_constant(value)
        if tensor is not None and made is not None and tensor.dtype in _CAST_FIRST:
            value, flipped = made
            break
        if tensor is not None:
            return Weight(value, tensor, flipped, cast or tensor.dtype)
        producer = value.producer()
        if producer is None:
            break
        if producer.domain not in ("", "ai.onnx") or producer.op_type not in (
            "Identity",
            "Transpose",
            "Cast",
        ):
            break
        if producer.op_type == "Transpose":
            if list(producer.attributes.get_ints("perm", [1, 0])) != [1, 0]:
                break
            flipped = not flipped
        if producer.op_type == "Cast":
            to = ir.DataType(producer.attributes.get_int("to", 0))
            if to not in _FLOATS:
                break
            made = value, flipped
            cast = cast or to
        value = producer.inputs[0]
    tensor = constant_of(value)
    if value is None or tensor is None:
        reason = why_unread(value) if value is not None else None
        return f"the weight is no stored constant: {reason}" if reason else _Unread.NO_CONSTANT
    return Weight(value, tensor, flipped, cast or tensor.dtype)


def _refuse(weight: Weight) -> str | None:
    """Why what a constant is rules it out."""
    if weight.tensor.dtype not in _FLOATS:
        return f"weight of type {weight.tensor.dtype.name}"
    return "empty weight" if weight.tensor.size == 0 else None


def _refuse_rank(weight: Weight) -> str | None:
    rank = len(weight.tensor.shape)
    if rank == 2:
        return None
    if rank > 2 and all(size == 1 for size in weight.tensor.shape.numpy()[:-2]):
        return f"weight of {rank} axes beside an operand whose number of axes is not known"
    return "scalar weight" if rank == 0 else f"batched weight of {rank} axes" if rank > 2 else "weight of one axis"


def _refuse_values(weight: Weight, finite: dict[int, bool]) -> str | None:
    key = id(weight.tensor)
    if key not in finite:
        finite[key] = is_finite(weight.tensor.numpy())
        release(weight.tensor)
    return None if finite[key] else "the weight holds NaN or infinity"
