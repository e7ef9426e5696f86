"""Models without their weights: for ONNX's own checks, for one of names, and for a run that is fed with them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from .. import storage
from ..names import roots
from ..reading import to_proto
from ..traverse import inner_graphs

if TYPE_CHECKING:
    import onnx


@dataclasses.dataclass(frozen=True)
class Standing:
    """What a model passes; what is made of it has to pass as much.

    Attributes:
        full: ONNX's full check, with inference of types and shapes.
        plain: The check of nodes, attributes and their order alone.
        clashes: Names that several values within sight of each other have, or several nodes.
    """

    full: bool
    plain: bool
    clashes: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Complaint:
    """What is wrong with a model that was not with the one it was made of.

    Attributes:
        text: A line.
        fatal: No runtime has to load it; else only types or shapes that it states are not those that ONNX infers.
    """

    text: str
    fatal: bool


@dataclasses.dataclass(frozen=True)
class Bare:
    """A model with inputs, which have a type and a shape alone, in the place of constants beyond 1 KB but outputs.

    Attributes:
        proto: The model.
        weights: What belongs into these inputs.
        clashes: As `Standing` has them, in the model as it was.
    """

    proto: onnx.ModelProto
    weights: dict[str, ir.TensorProtocol]
    clashes: frozenset[str]


def bare(model: ir.Model) -> Bare:
    """Take the weights out of a copy of a model, unread. Functions, which see no inputs of the model, keep theirs."""
    copy, weights = model.clone(), dict[str, ir.TensorProtocol]()
    for graph in [copy.graph, *copy.graph.subgraphs()]:
        for value in list(graph.initializers.values()):
            if value.const_value is None:
                continue
            named = value.is_graph_input() or value.is_graph_output()  # whoever runs the model knows it by its name
            if _is_large(value.const_value) and not named:
                del graph.initializers[value.name or ""]
                _feed(copy.graph, value, value.const_value, weights)
            elif isinstance(value.const_value, ir.ExternalTensor):  # which the checker looks for in the current folder
                array, dtype = np.array(value.const_value.numpy()), value.const_value.dtype
                value.const_value = ir.Tensor(array, dtype=dtype, name=value.name)
        for node in list(graph):
            attribute = node.attributes.get("value") if node.op_type == "Constant" else None
            if attribute is not None and _is_large(attribute.value) and not node.outputs[0].is_graph_output():
                value = ir.Value()
                ir.convenience.replace_all_uses_with(node.outputs[0], value)
                graph.remove(node, safe=True)
                _feed(copy.graph, value, attribute.value, weights)
    storage.embed_attributes(copy)
    return Bare(to_proto(copy), weights, frozenset(_clashes(model)))


def standing(model: Bare) -> Standing:
    """What a model passes."""
    full = _complaint(model.proto, full=True) is None
    return Standing(full, full or _complaint(model.proto, full=False) is None, model.clashes)


def new_complaint(before: Standing, model: Bare) -> Complaint | None:
    """What is wrong with a model that was made of one of this standing, and was not wrong with that one."""
    if clashes := model.clashes - before.clashes:
        return Complaint(f"several values or nodes are named {', '.join(sorted(clashes)[:3])}", True)
    if not before.plain:
        return None
    text = _complaint(model.proto, full=before.full)
    if text is None:
        return None
    return Complaint(text, not before.full or _complaint(model.proto, full=False) is not None)


def _is_large(tensor: ir.TensorProtocol) -> bool:
    return tensor.nbytes >= storage.LEAST_EXTERNAL and tensor.dtype != ir.DataType.STRING


def _feed(graph: ir.Graph, value: ir.Value, tensor: ir.TensorProtocol, weights: dict[str, ir.TensorProtocol]) -> None:
    """Let an input of the main graph stand for a tensor; a constant of an inner one may have a name of another's."""
    value.name = f"/weight/{len(weights)}"
    weights[value.name] = tensor
    value.const_value = None
    value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
    graph.inputs.append(value)


def _complaint(proto: onnx.ModelProto, *, full: bool) -> str | None:
    import onnx

    try:
        onnx.checker.check_model(proto, full_check=full)
    except Exception as error:  # of the checker, of shape inference, or of protobuf
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _clashes(model: ir.Model) -> set[str]:
    """Names of values that a graph or one around it has already, and of nodes that another one of the graph has."""
    found: set[str] = set()
    for root in roots(model):
        _visit(root, set(), found)
    return found


def _visit(graph: ir.Graph | ir.Function, outer: set[str], found: set[str]) -> None:
    nodes = list(graph)
    constants = graph.initializers.values() if isinstance(graph, ir.Graph) else ()
    values = {
        id(v): v.name for v in (*graph.inputs, *constants, *(v for node in nodes for v in node.outputs)) if v.name
    }
    counts = Counter(values.values())
    found |= {name for name, count in counts.items() if count > 1 or name in outer}
    found |= {name for name, count in Counter(node.name for node in nodes if node.name).items() if count > 1}
    for node in nodes:
        for inner in inner_graphs(node):
            _visit(inner, outer | counts.keys(), found)
