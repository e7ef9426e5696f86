"""Models with graphs inside nodes in a form that ONNX Runtime can save once nodes of the main graph are compiled.

It keeps of the main graph what its own nodes and outputs read, and forgets what only inner graphs do; and it cannot
write larger constants of inner graphs, be they stored or computed when it loads the model. So the main graph has them
meanwhile; one that an inner graph returns is an input with a default there, so that nobody computes it ahead. In the
end inner graphs get them back, for ONNX Runtime looks for the weights that it packs where they are read.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from ..graph.constants import constant_of, is_computation, is_constant, mark_constants
from ..graph.rewriting import add_initializer
from ..model_io.names import names_of

_MOST_INNER = 127  # bytes


def prepare_inner_graphs(model: ir.Model) -> set[str]:
    """Constants of inner graphs move into the main graph, and all that such graphs read of it follow its outputs.

    Args:
        model: Changed. What it computes stays the same, but for its new outputs.

    Returns:
        Names of the constants that moved.
    """
    mark_constants(model)
    before = set(model.graph.initializers)
    for graph in model.graph.subgraphs():
        _move_results(graph, model.graph)
        _move_constants(graph, model.graph)
    moved = set(model.graph.initializers) - before
    known = {*(value for value in model.graph.inputs if value.name not in moved), *model.graph.outputs}
    for graph in model.graph.subgraphs():
        for value in _read_by(graph):
            if value.graph is model.graph and value not in known:
                known.add(value)
                model.graph.outputs.append(value)
    return moved


def restore_inner_graphs(model: ir.Model, moved: set[str], outputs: int) -> None:
    """What was prepared loses its new outputs, and inner graphs get their constants back.

    Args:
        model: Changed.
        moved: Names of the constants.
        outputs: How many outputs it had.
    """
    while len(model.graph.outputs) > outputs:
        model.graph.outputs.pop()
    for name in sorted(moved & set(model.graph.initializers)):
        value = model.graph.initializers.pop(name)
        if value.is_graph_input():
            model.graph.inputs.remove(value)
        for reader in {node.graph: None for node in value.consumers()}:
            assert isinstance(reader, ir.Graph)
            own = ir.Value(name=name, const_value=value.const_value, type=value.type, shape=value.shape)
            reader.register_initializer(own)
            for node, index in list(value.uses()):
                if node.graph is reader:
                    node.replace_input_with(index, own)


def _read_by(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.outputs
    for node in graph:
        yield from (value for value in node.inputs if value is not None)


def _move_constants(graph: ir.Graph, main: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if value.const_value is not None and not value.is_graph_input() and _moves(value, value.const_value, main):
            del graph.initializers[name]
    for node in reversed(list(graph)):
        # ONNX Runtime computes such constants itself when it loads the model, and cannot write them either.
        if not is_computation(node) or not all(map(is_constant, node.outputs)):
            continue
        for value in node.outputs:
            if value.uses() and (tensor := constant_of(value)) is not None:
                _moves(value, tensor, main)
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)


def _move_results(graph: ir.Graph, main: ir.Graph) -> None:
    """Large constants that a graph returns come from outside, through an Identity; who else reads them still does."""
    names = names_of(main)
    for value in dict.fromkeys(graph.outputs):
        tensor = constant_of(value) if value.graph is graph else None
        if tensor is None or tensor.nbytes <= _MOST_INNER:
            continue
        outer = add_initializer(main, value.name or "", ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype))
        main.inputs.append(outer)
        node = ir.node("Identity", [outer], name=names.node(f"{outer.name}_returned"))
        (result,) = node.outputs
        result.name, result.type, result.shape = names.value(outer.name or ""), outer.type, outer.shape
        graph.append(node)
        for index, each in enumerate(graph.outputs):
            if each is value:
                graph.outputs[index] = result
        if value.is_initializer() and not value.uses():
            del graph.initializers[value.name or ""]


def _moves(value: ir.Value, tensor: ir.TensorProtocol, main: ir.Graph) -> bool:
    """Whether it moved: it is large, and no result of its graph, which has to be computed there."""
    if tensor.nbytes <= _MOST_INNER or value.is_graph_output():
        return False
    ir.convenience.replace_all_uses_with(value, add_initializer(main, value.name or "", tensor))
    return True
