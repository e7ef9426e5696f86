"""Which nodes read tensors rounded to floating-point numbers of few bits, and why the others stay in float.

The workflow of "Efficient Post-training Quantization with FP8 Formats" (Shen et al., arXiv:2309.14592, section 3): what
Conv, Gemm and MatMul read is rounded, both operands of the products of an attention as well, but in convolutional
networks nothing of the first and the last of them, which are few and cost most. That is the "standard" coverage; the
"extended" one takes sums and products of two tensors, normalizations and embeddings, too.

Nothing is computed on codes, so each node is decided on for itself: rounding a tensor twice changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import onnx_ir as ir
from onnxpress.custom_ops import functions

from ..errors import option
from ..graph.constants import constant_of, is_constant, mark_constants
from ..graph.element_type import element_type
from ..graph.matching import is_standard
from ..graph.opset_obstacle import obstacle
from ..graph.rewriting import settings_of
from ..settings.node_settings import Kept, NodeSettings
from ..settings.recipe import Recipe
from .int8_operators import Operator, Role, array_size, refuse_weight, understand
from .plan import UNOBSERVED, Decision, inside_functions, nested_nodes, refuse_table

_PRODUCTS = ("Conv", "Gemm", "MatMul")
_NORMS = ("LayerNormalization", "BatchNormalization")
_OF_TWO = ("Add", "Mul")
_UNCOVERED = ("ConvTranspose", "LSTM", "GRU", "RNN", "Einsum", "DeformConv")
_OPERATORS = (*_PRODUCTS, *_NORMS, *_OF_TWO, *_UNCOVERED, "Gather")


@dataclasses.dataclass(frozen=True)
class MinifloatPlan:
    """What becomes of a graph.

    Attributes:
        operators: The nodes that read rounded tensors, in the order of the graph.
        settings: What the recipe says of each.
        decisions: One for each node with a weight and for each other node that could have been taken.
    """

    operators: dict[ir.Node, Operator]
    settings: dict[ir.Node, NodeSettings]
    decisions: list[Decision]

    def tensors(self) -> list[ir.Value]:
        """All activations that are rounded, each once."""
        found: dict[ir.Value, None] = {}
        for operator in self.operators.values():
            found.update(dict.fromkeys(operator.activations))
        return list(found)


def plan_minifloat(
    model: ir.Model, recipe: Recipe, unusable: Mapping[str, str] | None = None, kept: Mapping[str, str] | None = None
) -> MinifloatPlan:
    """Decide on every node that could read rounded tensors.

    Args:
        model: A float model.
        recipe: Of a scheme that rounds activations to minifloats.
        unusable: Tensors that cannot be rounded, by name, and why: what a calibration found.
        kept: Nodes to leave in float, by name, and why: what measurements found.

    Returns:
        The plan. Nodes of graphs inside nodes are left where scales come from a calibration: what flows there cannot
        be observed.
    """
    mark_constants(model)
    paths = {node: path for path, node in nested_nodes(model.graph, "")}
    understood = {node: found for node in paths if (found := _understand(node)) is not None}
    too_old = obstacle(model, functions.MIN_OPSET)
    ends = _ends(model.graph, understood) if _keeps_ends(recipe, understood) else {}
    operators: dict[ir.Node, Operator] = {}
    settings: dict[ir.Node, NodeSettings] = {}
    reasons: dict[ir.Node, str] = {}
    for node, operator in understood.items():
        reason = _reason(node, operator, recipe, unusable or {}) or (kept or {}).get(node.name or "") or ends.get(node)
        if paths[node] and recipe.family != "minifloat-dynamic":
            reason = UNOBSERVED
        reason = reason or too_old
        chosen = settings_of(recipe, node, paths[node])
        if isinstance(chosen, Kept) and node.op_type == "ConvTranspose":  # it might be a Conv by now
            reason = chosen
        if reason is None and isinstance(operator, Operator) and isinstance(chosen, NodeSettings):
            operators[node], settings[node] = operator, chosen
        else:
            reasons[node] = reason or str(chosen)
    decisions = [
        Decision(
            node,
            paths[node],
            True,
            "",
            _rounded_size(operators[node]),
            settings=settings[node],
            scheme=scheme_of(settings[node]),
        )
        if node in operators
        else Decision(node, paths[node], False, reasons[node], _size(node))
        for node in understood
    ]
    return MinifloatPlan(operators, settings, [*decisions, *inside_functions(model, _OPERATORS)])


def scheme_of(settings: NodeSettings) -> str:
    """The formats of weights and activations, for people."""
    weights, activations = settings.weight.format, settings.activation_format
    return weights if weights == activations else f"{weights}, activations {activations}"


def _understand(node: ir.Node) -> Operator | str | None:
    """The operator that a node is, why it cannot be taken, or None where it is none that reads rounded tensors."""
    if any(map(is_constant, node.outputs)):
        return None
    if is_standard(node, *_UNCOVERED):
        return f"these schemes do not round what {node.op_type} reads"
    if is_standard(node, *_PRODUCTS):
        found = understand(node)
        constant = isinstance(found, Operator) and not all(map(_varies, found.activations))
        return "the constant is on the left" if constant else found
    if is_standard(node, *_NORMS):
        return Operator(node, Role.MAP) if _varies(node.inputs[0]) else "what it normalizes is constant"
    if is_standard(node, *_OF_TWO):
        return (
            Operator(node, Role.BINARY, inputs=(0, 1)) if all(map(_varies, node.inputs)) else "one operand is constant"
        )
    if is_standard(node, "Gather"):
        return _table(node)
    return None


def _varies(value: ir.Value | None) -> bool:
    return value is not None and not is_constant(value)


def _table(node: ir.Node) -> Operator | str:
    table = constant_of(node.inputs[0])
    if (reason := refuse_table(table)) is not None:
        return reason
    assert table is not None
    if table.dtype != ir.DataType.FLOAT:
        return f"table of type {table.dtype.name}; these schemes take float32"
    if len(table.shape) != 2 or node.attributes.get_int("axis", 0) != 0:
        return "Gather of a table that is no matrix, or along another axis than 0"
    return refuse_weight(node.inputs[0]) or Operator(node, Role.TABLE, inputs=(), constant=0)


def _reason(node: ir.Node, operator: Operator | str, recipe: Recipe, unusable: Mapping[str, str]) -> str | None:
    if isinstance(operator, str):
        return operator
    kinds = {element_type(value) for value in (*operator.activations, *node.outputs)}
    if not kinds <= {None, ir.DataType.FLOAT}:
        return "computes on another type than float32"
    if kinds == {None}:
        return "the type of what it computes on is not known"
    if not operator.is_product and recipe.coverage == "standard":
        return f"{'embedding table; ' if operator.role is Role.TABLE else ''}{option('coverage')} extended takes it"
    for value in operator.activations:
        if (reason := unusable.get(value.name or "")) is not None:
            return f"{value.name}: {reason}"
    return None


def _keeps_ends(recipe: Recipe, understood: Mapping[ir.Node, Operator | str]) -> bool:
    if recipe.first_and_last is not None:
        return not recipe.first_and_last
    return any(node.op_type == "Conv" for node in understood)


def _ends(graph: ir.Graph, understood: Mapping[ir.Node, Operator | str]) -> dict[ir.Node, str]:
    """The products before which there is none on any way through the graph, and those behind which there is none."""
    products = {node for node in understood if node.op_type in _PRODUCTS}
    ends = dict.fromkeys(_undominated(graph, products, forward=False), "one of the last products")
    ends |= dict.fromkeys(_undominated(graph, products, forward=True), "one of the first products")
    return {node: f"{which}; {option('first-and-last')} takes it" for node, which in ends.items()}


def _undominated(graph: ir.Graph, products: set[ir.Node], *, forward: bool) -> Iterator[ir.Node]:
    """Products that no other one reaches, forward or backward."""
    reached: set[ir.Node] = set()
    for node in graph if forward else reversed(graph):
        before = _near(node, forward)
        if any(each in reached or each in products for each in before):
            reached.add(node)
        elif node in products:
            yield node


def _near(node: ir.Node, forward: bool) -> Iterable[ir.Node]:
    """The nodes right before it in a direction."""
    if forward:
        return [producer for value in node.inputs if value is not None and (producer := value.producer()) is not None]
    return [reader for value in node.outputs for reader, _ in value.uses()]


def _rounded_size(operator: Operator) -> int:
    return array_size(operator.node.inputs[operator.constant]) if operator.constant is not None else 0


def _size(node: ir.Node) -> int:
    return max((array_size(value) for value in node.inputs[:2]), default=0)
