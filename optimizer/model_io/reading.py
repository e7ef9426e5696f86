"""Models as onnx-ir holds them: what it has no form for is rewritten on the way in, or given back on the way out.

Sparse constants become dense ones. Types that it does not know, such as the maps of classifiers, travel as metadata of
their values, which survives clones, renaming and serialization.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ..errors import OnnxpressError, first_line
from .names import values_of
from .quiet_libraries import quiet_libraries

if TYPE_CHECKING:
    import onnx

_TYPE_KEY = "onnxpress.type"
_MOST_DENSE = 1 << 31  # bytes; ONNX Runtime cannot hold more in one tensor of a model file either


def from_proto(proto: onnx.ModelProto, source: str) -> ir.Model:
    """The model that a file holds.

    Args:
        proto: The parsed file, which is changed.
        source: What to call it.

    Raises:
        OnnxpressError: It is no valid model.
    """
    for graph in _graphs(proto):
        _keep_first(graph)
        _make_dense(graph, source)
    for info in _infos(proto):
        _put_aside(info)
    try:
        with quiet_libraries():
            return ir.from_proto(proto)
    except Exception as error:  # the deserializer's own checks raise many types
        raise OnnxpressError(f"{source}: not a valid ONNX model: {first_line(error)}") from error


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """What a file of the model holds; weights in external data stay where they are."""
    return _give_back(ir.to_proto(model))


def load(path: Path) -> ir.Model:
    """A model that ONNX Runtime or this process wrote, which needs no checks; external data stays where it is."""
    import onnx

    model = from_proto(onnx.load(path, load_external_data=False), str(path))
    ir.external_data.set_base_dir(model.graph, path.parent)
    return model


def save(model: ir.Model, path: Path, external_data: str, least: int) -> None:
    """Write a model for ONNX Runtime alone: tensors beyond `least` bytes as external data; the model stays as it is."""
    import onnx

    ir.save(model, path, external_data=external_data, size_threshold_bytes=least)
    if any(_TYPE_KEY in value.metadata_props for value in values_of(model.graph)):
        path.write_bytes(_give_back(onnx.load(path, load_external_data=False)).SerializeToString())


def _give_back(proto: onnx.ModelProto) -> onnx.ModelProto:
    for info in _infos(proto):
        for entry in info.metadata_props:
            if entry.key == _TYPE_KEY:
                info.type.ParseFromString(base64.b64decode(entry.value))
                info.metadata_props.remove(entry)
                break
    return proto


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """The main graph, the bodies of functions, and the graphs inside their nodes."""
    waiting: list[onnx.GraphProto | onnx.FunctionProto] = [proto.graph, *proto.functions]
    for graph in waiting:  # which grows
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _infos(proto: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    import onnx

    for graph in _graphs(proto):
        yield from graph.value_info
        if isinstance(graph, onnx.GraphProto):
            yield from graph.input
            yield from graph.output


def _put_aside(info: onnx.ValueInfoProto) -> None:
    """Keep a type that onnx-ir does not know in the value's metadata."""
    for entry in [entry for entry in info.metadata_props if entry.key == _TYPE_KEY]:
        info.metadata_props.remove(entry)  # nobody's but ours
    if _is_known(info.type):
        return
    info.metadata_props.add(key=_TYPE_KEY, value=base64.b64encode(info.type.SerializeToString()).decode())
    info.ClearField("type")


def _is_known(type_: onnx.TypeProto) -> bool:
    kind = type_.WhichOneof("value")
    if kind in (None, "tensor_type", "sparse_tensor_type"):
        return kind is None or getattr(type_, kind).elem_type in _ELEMENTS
    return kind in ("sequence_type", "optional_type") and _is_inner(getattr(type_, kind).elem_type)


def _is_inner(type_: onnx.TypeProto) -> bool:
    """Whether the type of elements is known; onnx-ir needs one."""
    return type_.WhichOneof("value") is not None and _is_known(type_)


_ELEMENTS = frozenset(kind.value for kind in ir.DataType)


def _keep_first(graph: onnx.GraphProto | onnx.FunctionProto) -> None:
    """Of constants of one name, ONNX Runtime takes the first, and onnx-ir the last."""
    import onnx

    if not isinstance(graph, onnx.GraphProto):
        return
    first = {tensor.name: index for index, tensor in reversed(list(enumerate(graph.initializer)))}
    for index in reversed(range(len(graph.initializer))):
        if first[graph.initializer[index].name] != index:
            del graph.initializer[index]


def _make_dense(graph: onnx.GraphProto | onnx.FunctionProto, source: str) -> None:
    """Write the sparse constants of one graph, and of its Constant nodes, with all their zeros."""
    import onnx

    if isinstance(graph, onnx.GraphProto) and graph.sparse_initializer:
        graph.initializer.extend(_dense_all(graph.sparse_initializer, source))
        graph.ClearField("sparse_initializer")
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "sparse_value":
                dense = _dense(attribute.sparse_tensor, source)
                attribute.CopyFrom(onnx.helper.make_attribute("value", dense))


def _dense_all(tensors: Iterable[onnx.SparseTensorProto], source: str) -> Iterator[onnx.TensorProto]:
    for tensor in tensors:
        yield _dense(tensor, source)


def _dense(sparse: onnx.SparseTensorProto, source: str) -> onnx.TensorProto:
    import onnx

    name, dims = sparse.values.name, tuple(sparse.dims)
    what = f"{source}: sparse tensor '{name}'"
    if any(dim < 0 for dim in dims):
        raise OnnxpressError(f"{what} has the impossible shape {list(dims)}")
    try:
        values = onnx.numpy_helper.to_array(sparse.values)
        indices = onnx.numpy_helper.to_array(sparse.indices).astype(np.int64)
    except Exception as error:  # numpy's and onnx's, of data that is too short, of no type, or elsewhere
        raise OnnxpressError(f"{what} cannot be read: {first_line(error)}") from error
    size = math.prod(dims)
    if size * values.dtype.itemsize >= _MOST_DENSE:
        raise OnnxpressError(
            f"{what} of shape {list(dims)} has 2 GiB and more with its zeros; store it as external data"
        )
    if indices.ndim == 2 and indices.shape == (len(values), len(dims)):
        inside = ((indices >= 0) & (indices < np.array(dims))).all()
        places = indices @ np.cumprod([1, *dims[:0:-1]])[::-1] if dims else indices.sum(axis=1)
    else:
        inside, places = ((indices >= 0) & (indices < size)).all(), indices
    if values.ndim != 1 or places.shape != values.shape or not inside:
        raise OnnxpressError(f"{what} has indices that do not fit its {values.size} values or the shape {list(dims)}")
    dense = np.full(size, "" if values.dtype == object else 0, values.dtype)
    dense[places] = values
    return onnx.numpy_helper.from_array(dense.reshape(dims), name)
