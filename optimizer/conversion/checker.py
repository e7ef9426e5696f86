"""Models without their weights: for ONNX's own checks, for one of names, and for a run that is fed with them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import onnx_ir as ir

from ..graph.matching import RMS_NORM
from ..graph.weight_form import MICROSOFT
from ..model_io import storage
from ..model_io.names import roots
from ..model_io.reading import to_proto
from ..model_io.traverse import inner_graphs

if TYPE_CHECKING:
    import onnx


_FED = "fed"  # the file of tensors that no file holds
_KINDS = "fiub"  # of elements that sessions are fed with; those of other types NumPy does not know itself


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
    """What a file of a model holds but the weights, which are not read; functions, which see no inputs, keep theirs.

    Args:
        model: Without its weights meanwhile, and with them afterwards.
    """
    weights = dict[str, ir.TensorProtocol]()
    with ExitStack() as restored:
        for root in roots(model):
            for graph in (root, *root.subgraphs()):
                _lighten(graph, weights if root is model.graph else None, restored)
        proto = to_proto(model)
    inputs = list(_taken_out(proto.graph))
    proto.graph.input.extend(inputs)
    return Bare(proto, weights, frozenset(_clashes(model)))


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


def _lighten(graph: ir.Graph, weights: dict[str, ir.TensorProtocol] | None, restored: ExitStack) -> None:
    """Put references in the place of what is large, and what the checker would look for in files into memory."""
    for value in graph.initializers.values():
        if (tensor := value.const_value) is None:
            continue
        named = value.is_graph_input() or value.is_graph_output()  # whoever runs the model knows it by its name
        light = _light(tensor, value, None if named else weights)
        if light is not tensor:
            restored.callback(setattr, value, "const_value", tensor)
            value.const_value = light
    for node in graph:
        for name, attribute in list(node.attributes.items()):
            if attribute.is_ref() or attribute.type != ir.AttributeType.TENSOR:
                continue
            fed = node.op_type == "Constant" and name == "value" and not node.outputs[0].is_graph_output()
            light = _light(attribute.value, node.outputs[0], weights if fed else None)
            if light is not attribute.value:
                restored.callback(node.attributes.__setitem__, name, attribute)
                node.attributes[name] = ir.Attr(name, ir.AttributeType.TENSOR, light)


def _light(
    tensor: ir.TensorProtocol, value: ir.Value, weights: dict[str, ir.TensorProtocol] | None
) -> ir.TensorProtocol:
    name = value.name or ""
    large = tensor.nbytes >= storage.LEAST_EXTERNAL and tensor.dtype.numpy().kind in _KINDS
    if weights is None or not large or not name or name in weights:
        return storage.in_memory(tensor)
    weights[name] = tensor
    return ir.ExternalTensor(_FED, None, None, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)


def _taken_out(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    """Drop the references of a graph and those inside its nodes; inputs to stand for them."""
    from onnx import helper

    kept = [tensor for tensor in graph.initializer if not tensor.external_data]
    found = [(tensor.name, tensor) for tensor in graph.initializer if tensor.external_data]
    constants = []
    for index, node in enumerate(graph.node):
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _taken_out(inner)
            if attribute.t.external_data:
                constants.append(index)
                found.append((node.output[0], attribute.t))
    names = {name for name, _ in found}
    infos = [info for info in graph.value_info if info.name not in names]
    yield from (helper.make_tensor_value_info(name, tensor.data_type, tensor.dims) for name, tensor in found)
    for index in reversed(constants):
        del graph.node[index]
    for field, entries in (("initializer", kept), ("value_info", infos)):
        if len(entries) < len(getattr(graph, field)):
            graph.ClearField(field)
            getattr(graph, field).extend(entries)


def _complaint(proto: onnx.ModelProto, *, full: bool) -> str | None:
    import onnx

    try:
        onnx.checker.check_model(_with_known_operators(proto), full_check=full)
    except Exception as error:  # of the checker, of shape inference, or of protobuf
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _with_known_operators(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with what only ONNX Runtime has in the standard domain in its own, which the checker passes over."""
    if not any(_is_runtimes(node) for node in proto.graph.node):
        return proto
    copy = type(proto)()
    copy.CopyFrom(proto)
    for node in copy.graph.node:
        if _is_runtimes(node):
            node.domain = MICROSOFT
    if all(each.domain != MICROSOFT for each in copy.opset_import):
        copy.opset_import.add(domain=MICROSOFT, version=1)
    return copy


def _is_runtimes(node: onnx.NodeProto) -> bool:
    return node.op_type == RMS_NORM and node.domain in ("", "ai.onnx")


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
