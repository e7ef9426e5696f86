"""What all rewrites need: new initializers beside old ones, and a node in another's place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from ..recipe import NodeSettings, Recipe

Thing = TypeVar("Thing")


def required(thing: Thing | None) -> Thing:
    """What is known to be there; optional inputs and constants are None where they are not."""
    assert thing is not None
    return thing


_WRITTEN = "onnxpress.written"  # name and operator


def result_name(node: ir.Node) -> str | None:
    """Name of what a node makes; nodes themselves need not have names."""
    return next((value.name for value in node.outputs if value.name), None)


def written_name(node: ir.Node) -> str:
    """The name, in the model as the user knows it, of the node that one of the prepared model stands for."""
    return str(node.meta[_WRITTEN][0]) if _WRITTEN in node.meta else node.name or ""


def written_type(node: ir.Node) -> str:
    """The operator that a node of the prepared model stands for in the model as the user knows it."""
    return str(node.meta[_WRITTEN][1]) if _WRITTEN in node.meta else node.op_type


def settings_of(recipe: Recipe, node: ir.Node) -> NodeSettings | str:
    """What to do with a node; patterns may call it what it is called now and what the user calls it."""
    return recipe.settings(node.name or "", written_type(node), written_name(node))


def remember_name(node: ir.Node) -> None:
    """Note what the user calls a node."""
    node.meta[_WRITTEN] = written_name(node), written_type(node)


def stand_for(new: ir.Node, old: ir.Node) -> None:
    """Let recipes and reports call a node what they call the one whose work it takes over."""
    new.name = old.name or new.name
    new.meta[_WRITTEN] = written_name(old), written_type(old)


def add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Register a tensor under `name`, or the next free name after it."""
    unique, count = name, 1
    while unique in graph.initializers:
        unique, count = f"{name}_{count}", count + 1
    tensor.name = unique
    value = ir.Value(
        name=unique, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy())
    )
    graph.register_initializer(value)
    return value


def add_array(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """`add_initializer` for an array."""
    return add_initializer(graph, name, ir.tensor(array))


def insert_before(
    node: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    like: ir.Value | None,
    *,
    domain: str = "",
    overload: str = "",
    suffix: str,
    attributes: Mapping[str, int | str | list[int] | ir.TensorProtocol] | None = None,
) -> ir.Value:
    """A new node before `node`, named after it; its output has the type and shape of `like`."""
    new = ir.node(op_type, inputs, attributes=attributes, domain=domain, overload=overload, name=f"{node.name}{suffix}")
    new.outputs[0].name = f"{node.outputs[0].name}{suffix}"
    if like is not None:
        new.outputs[0].type = like.type
        new.outputs[0].shape = like.shape
    assert node.graph is not None
    node.graph.insert_before(node, new)
    return new.outputs[0]


def replace(node: ir.Node, new: ir.Value) -> None:
    """Let `new` take the place of the only output of `node`, its name included."""
    old = node.outputs[0]
    name = old.name
    graph = node.graph
    assert graph is not None
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    old.name = None
    new.name = name
    if new.shape is None:
        new.shape = old.shape
    if new.type is None:
        new.type = old.type
