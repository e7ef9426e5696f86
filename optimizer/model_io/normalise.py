"""One form of what models may say in several ways, so that nothing behind has to ask: every model read goes through it.

What is changed means the same to ONNX Runtime, which was asked about each (1.32).
"""

from __future__ import annotations

import re

import onnx_ir as ir

from ..errors import OnnxpressError
from .names import roots, settle_names, values_of
from .own_results import OwnResults
from .traverse import inner_graphs

_LEAST_IR = 4
"""The first version of the file format in which initializers need not be inputs, and inputs can be overridden."""

_NO_NAME = re.compile(r"\W*|-\d+|none", re.IGNORECASE)


def normalise(model: ir.Model, source: str) -> None:
    """Bring a model into the one form, in place.

    The standard domain is called "". Initializers that are constants are no inputs. Sizes that are below zero, or that
    have a name in which there is nothing to read such as "?", are open, and not equal to one another. Nodes follow
    those whose results they read. Inner graphs return what they make themselves. Names of values are unique, see
    `names`.

    Args:
        model: As it was read.
        source: What to call it.

    Raises:
        OnnxpressError: Nodes wait for each other, or something is read that is nowhere.
    """
    for root in roots(model):
        _name_standard_domain(root)
        _open_sizes(root)
        _sort(root, source)
    _import_standard_domain(model)
    _free_inputs(model)
    OwnResults()(model)
    for root in roots(model):
        _check_read(root, source)
    settle_names(model)


def _check_read(root: ir.Graph, source: str) -> None:
    """Whatever is read or returned is there: an input, a constant, or the result of a node."""
    for graph in (root, *root.subgraphs()):
        read = [
            (f"node '{node.name}' ({node.op_type}) reads", value) for node in graph for value in node.inputs if value
        ]
        returned = [("an output of a graph is", value) for value in graph.outputs]
        for who, value in (*read, *returned):
            if value.producer() is None and not value.is_graph_input() and not value.is_initializer():
                raise OnnxpressError(f"{source}: {who} '{value.name}', which no node makes and no input is")


def is_nameless(size: str) -> bool:
    """Whether exporters write this for a size that they know nothing of."""
    return _NO_NAME.fullmatch(size) is not None


def _name_standard_domain(root: ir.Graph) -> None:
    imports = root.opset_imports
    if "ai.onnx" in imports:  # onnx-ir has done the same for the nodes
        last = [domain for domain in imports if domain in ("", "ai.onnx")][-1]  # the last one counts
        imports[""] = imports[last]
        del imports["ai.onnx"]


def _import_standard_domain(model: ir.Model) -> None:
    """A version where none is said: ONNX Runtime takes its newest, and so does the oldest that means the same."""
    if "" in model.opset_imports:
        return
    import onnx

    standard = {node.op_type for node in model.graph.all_nodes() if node.domain == ""}
    since = [onnx.defs.get_schema(name).since_version for name in standard if onnx.defs.has(name)]
    if since:
        model.opset_imports[""] = max(since)


def _open_sizes(root: ir.Graph) -> None:
    for value in values_of(root):
        if value.shape is None or not any(_is_open(size) for size in value.shape):
            continue
        sizes = [None if _is_open(size) else size for size in value.shape]
        notes = [value.shape.get_denotation(axis) for axis in range(len(sizes))]
        value.shape = ir.Shape(sizes, notes)


def _is_open(size: int | ir.SymbolicDim) -> bool:
    """Whether a size has a number or a name that says nothing."""
    if isinstance(size, int):
        return size < 0
    return size.value is not None and is_nameless(size.value)


def freeze_inputs(model: ir.Model) -> None:
    """Let inputs that have a value be constants."""
    for graph in (model.graph, *model.graph.subgraphs()):
        graph.inputs[:] = [value for value in graph.inputs if not value.is_initializer()]


def _free_inputs(model: ir.Model) -> None:
    """Before the file format could override initializers, all of them were inputs, and constants."""
    if model.ir_version < _LEAST_IR:
        freeze_inputs(model)
        model.ir_version = _LEAST_IR


def _sort(root: ir.Graph, source: str) -> None:
    if _is_sorted(root, set()):
        return
    try:
        root.sort()
    except ValueError as error:
        raise OnnxpressError(f"{source}: nodes of the graph wait for each other's results, in a cycle") from error


def _is_sorted(graph: ir.Graph, done: set[ir.Node]) -> bool:
    """Whether each node, and all inside it, reads of this graph and those around it what was made before."""
    for node in graph:
        makers = [value.producer() for value in node.inputs if value is not None]
        if any(maker is not None and maker not in done for maker in makers):
            return False
        if not all(_is_sorted(inner, done) for inner in inner_graphs(node)):
            return False
        done.add(node)
    return True
