"""Which nodes compute on codes of 8 bits, which tensors are rounded for them, and why the others stay in float.

Products are what int8 is for: they are taken wherever they can be. Everything else follows them. An operator between
products is taken when codes reach it and when codes are wanted of it, so that no node decodes only to encode again:
the largest such set is found by starting with all of them and dropping those that lack either, until none does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from ..graph.constants import constant_of, is_constant, mark_constants
from ..graph.rewriting import settings_of
from ..settings.node_settings import Kept
from ..settings.recipe import Recipe
from .int8_operators import OPERATORS, Operator, Role, array_size, understand
from .plan import UNOBSERVED, Decision, inside_functions, nested_nodes

_SCHEME = "int8"


@dataclasses.dataclass(frozen=True)
class Int8Plan:
    """What becomes of a graph.

    Attributes:
        operators: The nodes that compute on codes, in the order of the graph.
        ends: Where each of their results is rounded: behind the bias of a MatMul, which ONNX Runtime adds within the
            product, and behind a Relu or Clip, which saturation replaces.
        replaced: Each such Relu and Clip.
        decisions: One for each node with a weight and for each other node that could have been taken.
    """

    operators: dict[ir.Node, Operator]
    ends: dict[ir.Value, ir.Value]
    replaced: dict[ir.Node, Operator]
    decisions: list[Decision] = dataclasses.field(default_factory=list)

    def outputs(self, operator: Operator) -> list[ir.Value]:
        """The values that take the codes of an operator's results; none where the results stay in float."""
        ends = [self.ends[value] for value in operator.node.outputs]
        if operator.role in _FLOAT_RESULTS:
            return [value for value in ends if self.is_wanted(value)]
        return ends

    def is_wanted(self, value: ir.Value) -> bool:
        """Whether some operator reads the codes of a value."""
        return any(
            index in operator.inputs
            for node, index in value.uses()
            if (operator := self.operators.get(node)) is not None
        )

    def readers_in_float(self) -> list[ir.Node]:
        """The only readers of products whose results stay in float."""
        products = [each for each in self.operators.values() if each.is_product and not self.outputs(each)]
        readers = (_only_reader(product.node.outputs[0]) for product in products)
        return [reader for reader in readers if reader is not None]

    def tensors(self) -> list[ir.Value]:
        """All values that are rounded, each once."""
        found: dict[ir.Value, None] = {}
        for operator in self.operators.values():
            found.update(dict.fromkeys([*operator.activations, *self.outputs(operator)]))
        return list(found)


_SAME_CODES = (Role.MOVE, Role.SPLIT, Role.SCALE)
_FLOAT_RESULTS = (Role.GEMM, Role.MATMUL, Role.MATMUL_OF_TWO)


def plan_int8(
    model: ir.Model, recipe: Recipe, unusable: Mapping[str, str] | None = None, kept: Mapping[str, str] | None = None
) -> Int8Plan:
    """Decide on every node of the main graph.

    Args:
        model: A float model; its values carry no codes yet.
        recipe: What is asked for; its patterns keep nodes in float.
        unusable: Tensors that cannot be rounded, by name, and why: what a calibration found.
        kept: Nodes to leave in float, by name, and why: what measurements found.

    Returns:
        The plan. Nodes of graphs inside nodes are left: what flows there cannot be observed.
    """
    mark_constants(model)
    followers = dataclasses.replace(recipe, include=())
    operators: dict[ir.Node, Operator] = {}
    clamps: dict[ir.Node, Operator] = {}
    reasons: dict[ir.Node, str] = {}
    for node in model.graph:
        operator = (kept or {}).get(node.name or "") or _wish(node, recipe, followers)
        if isinstance(operator, str):
            reasons[node] = operator
        elif operator is not None and operator.role is Role.CLAMP:
            clamps[node], reasons[node] = operator, "no int8 operator feeds it alone"
        elif operator is not None:
            operators[node] = operator
    while True:
        plan = _follow(operators, clamps)
        made = set(plan.ends.values())
        dropped = {
            node: reason
            for node, operator in operators.items()
            if (reason := _reason_to_drop(plan, operator, made, unusable or {})) is not None
        }
        if not dropped:
            break
        reasons.update(dropped)
        operators = {node: operator for node, operator in operators.items() if node not in dropped}
    plan.decisions.extend([*_decisions(model, plan, reasons), *inside_functions(model, OPERATORS)])
    return plan


def _wish(node: ir.Node, recipe: Recipe, followers: Recipe) -> Operator | str | None:
    """What a node is to be; products are what `include` chooses among, while anything can be excluded."""
    operator = understand(node) if not any(map(is_constant, node.outputs)) else None
    if not isinstance(operator, Operator):
        # A ConvTranspose that the recipe keeps could be a Conv by now.
        return (_kept(node, recipe) if node.op_type == "ConvTranspose" else None) or operator
    if any(value.dtype not in (None, ir.DataType.FLOAT) for value in node.outputs):
        return "computes on another type than float32"
    return _kept(node, recipe if operator.is_product else followers) or operator


def _kept(node: ir.Node, recipe: Recipe) -> str | None:
    """Why the recipe keeps a node in float."""
    settings = settings_of(recipe, node)
    return settings if isinstance(settings, Kept) else None


def _follow(operators: dict[ir.Node, Operator], clamps: Mapping[ir.Node, Operator]) -> Int8Plan:
    """The plan of these operators, with the nodes behind them that they take over."""
    ends: dict[ir.Value, ir.Value] = {}
    replaced: dict[ir.Node, Operator] = {}
    for operator in operators.values():
        for result in operator.node.outputs:
            end = result
            while (node := _only_reader(end)) is not None:
                if node in clamps and operator.role not in _SAME_CODES:
                    replaced[node] = clamps[node]
                elif not (operator.role is Role.MATMUL and end is result and is_bias(node, end)):
                    break
                end = node.outputs[0]
            ends[result] = end
    return Int8Plan(operators, ends, replaced)


def _reason_to_drop(plan: Int8Plan, operator: Operator, made: set[ir.Value], unusable: Mapping[str, str]) -> str | None:
    for value in (*operator.activations, *plan.outputs(operator)):
        if (reason := unusable.get(value.name or "")) is not None:
            return f"{value.name}: {reason}"
    if operator.is_product:
        return None
    if not any(plan.is_wanted(value) for value in plan.outputs(operator)):
        return "no int8 operator reads it"
    # A graph input that is only moved is rounded first: that moves a quarter of the bytes.
    moves = operator.role is Role.MOVE
    if not any(value in made or (moves and value.is_graph_input()) for value in operator.activations):
        return "no int8 operator feeds it"
    return None


def is_bias(node: ir.Node, value: ir.Value) -> bool:
    """Whether the node adds a constant vector to the value: ONNX Runtime fuses it into the product."""
    if node.op_type != "Add" or node.domain not in ("", "ai.onnx") or len(node.inputs) != 2:
        return False
    other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    tensor = constant_of(other)
    return tensor is not None and len(tensor.shape) == 1


def _only_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value, where nobody else does."""
    uses = list(value.uses())
    return uses[0][0] if len(uses) == 1 and not value.is_graph_output() else None


def _decisions(model: ir.Model, plan: Int8Plan, reasons: Mapping[ir.Node, str]) -> Iterator[Decision]:
    taken_over = {node for result, end in plan.ends.items() for node in _between(result, end)}
    in_float = {
        node
        for operator in plan.operators.values()
        if not plan.outputs(operator)
        for node in _between(operator.node.outputs[0], plan.ends[operator.node.outputs[0]])
        if node in plan.replaced
    }
    for path, node in nested_nodes(model.graph, ""):
        operator = plan.operators.get(node)
        if operator is not None:
            yield Decision(node, path, True, "", operator.parameters, scheme=_SCHEME)
        elif path:
            if not any(map(is_constant, node.outputs)) and understand(node) is not None:
                yield Decision(node, path, False, UNOBSERVED, _weight_size(node))
        elif node in in_float:
            yield Decision(node, path, False, "no int8 operator reads it")
        elif node in reasons and node not in taken_over:
            yield Decision(node, path, False, reasons[node], _weight_size(node))


def _between(result: ir.Value, end: ir.Value) -> Iterator[ir.Node]:
    """The nodes behind a result that it is rounded behind."""
    while result is not end:
        ((node, _),) = result.uses()
        yield node
        result = node.outputs[0]


def _weight_size(node: ir.Node) -> int:
    return array_size(node.inputs[1]) if len(node.inputs) > 1 else 0
