"""Tensors, and compiled nodes, whose values lie in a file of their own: where that may be, and how it is told.

As for ONNX Runtime, they lie below the model's folder, or below that of the file where the model is a link to one, and
links are followed as far: model caches have folders of links to files without names. A hard link is the file itself,
under one name of several, and nobody here writes into a file that has a name already.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx_ir as ir

from ..errors import OnnxpressError
from .traverse import graphs, initializers


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """All tensors of external data, of initializers and of attributes."""
    yield from (tensor for _, tensor, _ in external_places(model))


def external_places(model: ir.Model) -> Iterator[tuple[str, ir.ExternalTensor, Callable[[ir.ExternalTensor], None]]]:
    """Who holds which tensor of external data, and how to put another one there."""

    def put(tensor: ir.ExternalTensor) -> None:
        holder.const_value = tensor

    def put_attribute(tensor: ir.ExternalTensor) -> None:
        node.attributes[name] = ir.Attr(name, ir.AttributeType.TENSOR, tensor)

    for holder in initializers(model):
        if isinstance(holder.const_value, ir.ExternalTensor):
            yield f"initializer '{holder.name}'", holder.const_value, put
    roots: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for root in roots:
        for node in root.all_nodes():
            for name, attribute in list(node.attributes.items()):
                if isinstance(attribute, ir.Attr) and isinstance(attribute.value, ir.ExternalTensor):
                    yield f"attribute '{name}' of node '{node.name}'", attribute.value, put_attribute


def context_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """The nodes that execution providers put in the place of those that they compiled."""
    for graph in graphs(model):
        yield from (node for node in graph if (node.domain, node.op_type) == ("com.microsoft", "EPContext"))


def files_of(model: ir.Model, path: Path) -> set[Path]:
    """The files of external data, and those of compiled nodes that are there beside the model at `path`."""
    contexts = (_context_file(node, path) for node in context_nodes(model))
    return {Path(tensor.path) for tensor in external_tensors(model)} | {file for file in contexts if file is not None}


def _context_file(node: ir.Node, path: Path) -> Path | None:
    """What a compiled node names; none where it holds its values itself, or names nothing that is there."""
    name, embeds = node.attributes.get("ep_cache_context"), node.attributes.get("embed_mode")
    if name is None or name.type != ir.AttributeType.STRING or embeds is None or embeds.value != 0:
        return None
    with contextlib.suppress(OSError, ValueError):  # of names that no file can have
        return _find(path, name.as_string())
    return None


def _folders_of(path: Path) -> list[Path]:
    """Where data of a model may lie: below its folder, or that of the file where the path is a link to one."""
    return [path.parent, path.resolve().parent]


def _find(path: Path, location: str) -> Path | None:
    """The file, by its path without links; None where it is missing or, through links, in neither of the folders."""
    folders = _folders_of(path)
    found = next((folder / location for folder in folders if (folder / location).is_file()), None)
    if found is None or not any(folder.resolve() in found.resolve().parents for folder in folders):
        return None
    return found.resolve()


def common_folder(model: ir.Model, path: Path) -> Path:
    """Make locations of external data relative to one folder, which a session has to be told with the model's bytes.

    Args:
        model: As `load` gives it; changed.
        path: Its file, beside which a model without external data is.
    """
    folders = [os.path.realpath(tensor.base_dir) for tensor in external_tensors(model)]
    folder = Path(os.path.commonpath(folders)) if folders else path.parent.resolve()
    for _, tensor, put in external_places(model):
        put(_tensor_at(tensor, Path(tensor.path).resolve(), folder))
    return folder


class _Tensor(ir.ExternalTensor):
    """A tensor of a file that was looked at here, where onnx-ir would refuse one of several hard links once more."""

    def _check_path_containment(self) -> None:
        pass


def _tensor_at(tensor: ir.ExternalTensor, data: Path, folder: Path) -> ir.ExternalTensor:
    """The tensor with a location relative to another folder."""
    return _Tensor(
        str(data.relative_to(folder)), tensor.offset, tensor.length, tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()), name=tensor.name or "", doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props), base_dir=folder,
    )  # fmt: skip


def checked(path: Path, owner: str, tensor: ir.ExternalTensor) -> ir.ExternalTensor:
    """The tensor where its data really lie.

    Args:
        path: The model.
        owner: Who holds the tensor.
        tensor: As the model has it.

    Raises:
        OnnxpressError: The data are not whole or not within the model's folders.
    """
    location = str(tensor.location)
    what = f"{path}: {owner}: external data '{location}'"
    if os.path.isabs(location) or ".." in Path(location).parts:
        raise OnnxpressError(f"{what} is not below the model's folder; move it there and use a relative location")
    if not any((folder / location).is_file() for folder in _folders_of(path)):
        raise OnnxpressError(f"{what} is missing; it must lie beside the model")
    data = _find(path, location)
    if data is None:
        raise OnnxpressError(f"{what} is a link that leaves the model's folder; copy the files there (cp -L)")
    if any(not isinstance(dim, int) or dim < 0 for dim in tensor.shape):
        raise OnnxpressError(f"{path}: {owner} has the impossible shape {tensor.shape}")
    needed = nbytes(tensor)
    offset, length = tensor.offset or 0, tensor.length
    if length is not None and length != needed:
        raise OnnxpressError(f"{what} holds {length} bytes, the shape {tensor.shape} needs {needed}")
    size = data.stat().st_size
    if offset + needed > size:
        raise OnnxpressError(f"{what} ends at byte {size}, but the tensor needs bytes {offset} to {offset + needed}")
    return _tensor_at(tensor, data, data.parent)


def nbytes(tensor: ir.TensorProtocol) -> int:
    """Bytes of a tensor in a file."""
    if tensor.dtype == ir.DataType.STRING:
        return sum(map(len, tensor.numpy().ravel()))
    return math.ceil(tensor.dtype.itemsize * math.prod(tensor.shape.numpy()))
