"""What all rewrites need: new initializers beside old ones, and a node in another's place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from ..model_io.names import names_of
from ..model_io.traverse import inner_graphs
from ..settings.node_settings import Kept, NodeSettings
from ..settings.recipe import Recipe

Thing = TypeVar("Thing")


def required(thing: Thing | None) -> Thing:
    """What is known to be there; optional inputs and constants are None where they are not."""
    assert thing is not None
    return thing


_WRITTEN = "onnxpress.written"  # name and operator
_FLOAT_NAME = "onnxpress.float_name"


def result_name(node: ir.Node) -> str | None:
    """Name of what a node makes; nodes themselves need not have names."""
    return next((value.name for value in node.outputs if value.name), None)


def original_name(node: ir.Node) -> str:
    """The name, in the model as the user knows it, of the node that one of the prepared model stands for."""
    return str(node.meta[_WRITTEN][0]) if _WRITTEN in node.meta else node.name or ""


def original_type(node: ir.Node) -> str:
    """The operator that a node of the prepared model stands for in the model as the user knows it."""
    return str(node.meta[_WRITTEN][1]) if _WRITTEN in node.meta else node.op_type


def listed_names(node: ir.Node, path: str = "") -> set[str]:
    """What patterns may call a node: what it is called now and what the user calls it, with where it is and without."""
    names = {node.name or "", original_name(node)}
    return names | {f"{path}/{name}" for name in names} if path else names


def settings_of(recipe: Recipe, node: ir.Node, path: str = "") -> NodeSettings | Kept:
    """What to do with a node, which lies within the nodes of the path."""
    return recipe.settings(node.name or "", original_type(node), listed_names(node, path))


def remember_name(node: ir.Node) -> None:
    """Note what the user calls a node."""
    node.meta[_WRITTEN] = original_name(node), original_type(node)


def forget_name(node: ir.Node) -> None:
    """Let a node be called what it is called now alone."""
    node.meta[_WRITTEN] = node.name or "", original_type(node)


def take_over_name(new: ir.Node, old: ir.Node) -> None:
    """Let recipes and reports call a node what they call the one whose work it takes over."""
    new.name = old.name or new.name
    new.meta[_WRITTEN] = original_name(old), original_type(old)


def float_name(value: ir.Value) -> str:
    """What a tensor is called in the float model, of which observations know it by name."""
    return str(value.meta.get(_FLOAT_NAME, value.name or ""))


def remember_float_name(value: ir.Value, name: str | None) -> None:
    """Note what a tensor, or the one that it is decoded from, is called in the float model."""
    value.meta[_FLOAT_NAME] = name or ""


def add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Register a tensor under `name`, or the next free name after it."""
    tensor.name = unique = names_of(graph).value(name)
    value = ir.Value(
        name=unique, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy())
    )
    graph.register_initializer(value)
    return value


def add_array(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """`add_initializer` for an array."""
    return add_initializer(graph, name, ir.Tensor(np.asarray(array)))


class SharedArrays:
    """Constants of a graph: who asks for the same numbers under the same name gets the same one."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[str, list[tuple[np.ndarray, ir.Value]]] = {}

    def add(self, name: str, array: np.ndarray) -> ir.Value:
        """The constant of this name, or of the next free one after it."""
        array, made = np.asarray(array), self._made.setdefault(name, [])
        for held, value in made:
            if held.dtype == array.dtype and np.array_equal(held, array):
                return value
        made.append((array, add_array(self._graph, name, array)))
        return made[-1][1]

    def first(self, name: str) -> ir.Value:
        """The first that was asked for under a name."""
        return self._made[name][0][1]


def set_names(node: ir.Node, graph: ir.Graph, name: str, *results: str) -> None:
    """Name a node that is new in a graph, and its outputs, or by the next free names after these."""
    names = names_of(graph)
    node.name = names.node(name)
    for value, wanted in zip(node.outputs, results, strict=True):
        value.name = names.value(wanted)


def insert_before(
    node: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    like: ir.Value | None,
    *,
    domain: str = "",
    overload: str = "",
    suffix: str,
    attributes: Mapping[str, int | float | str | list[int] | ir.TensorProtocol] | None = None,
) -> ir.Value:
    """A new node before `node`, named after it; its output has the type and shape of `like`.

    Without a suffix it is to take the place of `node`, and has its names already.
    """
    graph = required(node.graph)
    new = ir.node(op_type, inputs, attributes=attributes, domain=domain, overload=overload, name=node.name)
    new.outputs[0].name = node.outputs[0].name
    if suffix:
        set_names(new, graph, f"{node.name}{suffix}", f"{node.outputs[0].name}{suffix}")
    if like is not None:
        new.outputs[0].type = like.type
        new.outputs[0].shape = like.shape
    graph.insert_before(node, new)
    return new.outputs[0]


def insert_cast(node: ir.Node, x: ir.Value, dtype: ir.DataType, suffix: str) -> ir.Value:
    """A value in another type, by a Cast before `node`."""
    cast = insert_before(node, "Cast", [x], x, suffix=suffix, attributes={"to": int(dtype)})
    cast.type = ir.TensorType(dtype)
    return cast


def replace(node: ir.Node, new: ir.Value) -> None:
    """Let `new` take the place of the only output of `node`, its name included."""
    old = node.outputs[0]
    name = old.name
    graph = node.graph
    assert graph is not None
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    old.name = None
    if new.name != name:
        names_of(graph).release(new.name)
        new.name = name
    if new.shape is None:
        new.shape = old.shape
    if new.type is None:
        new.type = old.type


def detach(node: ir.Node) -> None:
    """Let a node that is in no graph, or no longer, read nothing, nor what is inside it."""
    for index in range(len(node.inputs)):
        node.replace_input_with(index, None)
    for inner in inner_graphs(node):
        for each in inner:
            detach(each)
