"""The smallest part of a case's model that still shows its fault."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import onnx
from onnx import helper

from .case import Case


def shrink(case: Case, shows: Callable[[Case], bool]) -> Case:
    """Try each inner value as the only output, and leave out what it does not need."""
    best = case
    graph = case.model.graph
    for node in graph.node:
        for name in node.output:
            smaller = _ending_in(case, name)
            if smaller is None or len(smaller.model.graph.node) >= len(best.model.graph.node):
                continue
            if shows(smaller):
                best = smaller
    return best


def _ending_in(case: Case, name: str) -> Case | None:
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    graph = model.graph
    needed, kept = {name}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(filter(None, node.input)) | _outer(node)
    if len(kept) == 0:
        return None
    nodes = list(reversed(kept))
    copies = [onnx.NodeProto() for _ in nodes]
    for copy, node in zip(copies, nodes, strict=True):
        copy.CopyFrom(node)
    typed = {o.name: o for o in graph.output}
    output = onnx.ValueInfoProto()
    output.CopyFrom(typed.get(name) or helper.make_tensor_value_info(name, _float_type(case), None))
    inputs = [i for i in graph.input if i.name in needed]
    initializers = [i for i in graph.initializer if i.name in needed]
    small = helper.make_graph(copies, "g", inputs, [output], initializers)
    result = helper.make_model(small, opset_imports=model.opset_import, ir_version=model.ir_version)
    names = {i.name for i in inputs}
    feeds = [{k: v for k, v in f.items() if k in names} for f in case.feeds]
    samples = [{k: v for k, v in f.items() if k in names} for f in case.samples]
    return dataclasses.replace(case, model=result, feeds=feeds, samples=samples)


def _outer(node: onnx.NodeProto) -> set[str]:
    """Names that graphs inside a node read; those of their own do no harm here."""
    found: set[str] = set()
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                found |= set(inner.input) | _outer(inner)
            found |= {o.name for o in graph.output}
    return found


def _float_type(case: Case) -> int:
    return case.model.graph.output[0].type.tensor_type.elem_type


def text(model: onnx.ModelProto) -> str:
    """The graph to read, with small constants."""
    lines = [f"opset {', '.join(f'{o.domain}:{o.version}' for o in model.opset_import)}, IR {model.ir_version}"]
    for entry in model.graph.input:
        lines.append(f"  input {entry.name} {_shape(entry)}")
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        shown = array.tolist() if array.size <= 8 else "..."
        lines.append(f"  {tensor.name} = {array.dtype} {list(array.shape)} {shown}")
    lines += [f"  {line}" for node in model.graph.node for line in _node(node)]
    return "\n".join(lines + [f"  output {entry.name}" for entry in model.graph.output])


def _shape(entry) -> str:
    return str(
        [d.dim_param or (d.dim_value if d.HasField("dim_value") else "?") for d in entry.type.tensor_type.shape.dim]
    )


def _node(node) -> list[str]:
    given, inner = [], []
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, onnx.GraphProto):
            inner.append(f"    {attribute.name}({', '.join(i.name for i in value.input)}) -> {value.output[0].name}:")
            inner += [f"      {t.name} = {list(t.dims)}" for t in value.initializer]
            inner += [f"      {line}" for each in value.node for line in _node(each)]
        elif isinstance(value, onnx.TensorProto):
            array = onnx.numpy_helper.to_array(value)
            given.append(f"{attribute.name}={array.tolist() if array.size <= 8 else list(array.shape)}")
        else:
            given.append(f"{attribute.name}={value}")
    call = f"{', '.join(node.output)} = {node.op_type}({', '.join(node.input)})"
    return [f"{call} {' '.join(given)}".rstrip(), *inner]
