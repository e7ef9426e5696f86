"""Reading models that nobody vouches for, and writing them so that nothing is ever lost.

Reading maps external data and checks where it lies. Writing streams one tensor at a time into a temporary file beside
the target and renames it when it is whole. External data goes into one file whose name carries a digest of its
content: until the model file is replaced, the old model keeps finding its old data.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import onnx_ir as ir

from ..errors import OnnxpressError, UsageError
from .external_data import checked, external_places, external_tensors, files_of, nbytes
from .narrow_types import check_narrow_types
from .normalise import normalise
from .reading import from_proto, to_proto
from .target import check_other
from .target import check_target as check_target
from .traverse import graphs as graphs
from .traverse import initializers as initializers

if TYPE_CHECKING:
    import onnx

# Protobuf ends at 2 GiB; beyond this, weights go into a file of their own.
_MOST_INLINE = 1_500_000_000
LEAST_EXTERNAL = 1024
"""Bytes of a tensor below which it stays in the model file."""

UNREAD = "onnxpress.unread"
"""Key of a loaded model's `meta`: the parts of the file that no model in memory holds."""

_CHUNK = 1 << 24

TensorDone = Callable[[int, int], None]
"""Called after each tensor with the number done and the number in all."""


def load(path: str | Path) -> ir.Model:
    """Read a model, in the form of `normalise`; weights in external data are mapped when they are used.

    Args:
        path: The .onnx file.

    Raises:
        OnnxpressError: The file is missing, no model, damaged, of an unknown opset or with types that its opset does
            not know, or refers to external data that is missing, too short or outside the model's folder.
    """
    path = Path(path)
    proto = _parse(path)
    _check_header(path, proto)
    _check_entries(path, proto)
    model = from_proto(proto, str(path))
    model.meta[UNREAD] = ["training_info"] if proto.training_info else []
    for owner, tensor, put in external_places(model):
        put(checked(path, owner, tensor))
    for value in initializers(model):
        constant = value.const_value
        if constant is not None and any(not isinstance(dim, int) or dim < 0 for dim in constant.shape):
            raise OnnxpressError(f"{path}: initializer '{value.name}' has the impossible shape {constant.shape}")
    normalise(model, str(path))
    check_narrow_types(model, str(path))
    return model


def of_proto(proto: object) -> ir.Model:
    """A model in memory, as onnx has it.

    Raises:
        UsageError: It is none.
        OnnxpressError: It is no valid model, or its weights are in files.
    """
    import onnx

    if not isinstance(proto, onnx.ModelProto):
        raise UsageError(f"{proto!r:.40}: give a path, a name, an onnx.ModelProto or an onnx_ir.Model")
    source = Path(proto.graph.name or "model")
    _check_header(source, proto)
    own = onnx.ModelProto()
    own.CopyFrom(proto)
    model = from_proto(own, str(source))
    if has_external_data(model):
        raise OnnxpressError(f"{source}: its weights are in files; give the path of the model")
    return model


def _parse(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError as error:
        raise OnnxpressError(f"{path}: no such file") from error
    except OSError as error:
        raise OnnxpressError(f"{path}: cannot read: {error.strerror}") from error
    if not data:
        raise OnnxpressError(f"{path}: the file is empty")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise OnnxpressError(f"{path}: not an ONNX model, or a truncated one") from error
    return proto


def _check_header(path: Path, proto: onnx.ModelProto) -> None:
    import onnx

    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise OnnxpressError(f"{path}: not an ONNX model: it has no graph")
    if not proto.opset_import:
        raise OnnxpressError(f"{path}: the model names no opset")
    for entry in proto.opset_import:
        newest = onnx.defs.onnx_opset_version()
        if entry.domain in ("", "ai.onnx") and not 1 <= entry.version <= newest:
            raise OnnxpressError(
                f"{path}: opset {entry.version} is unknown, the installed onnx knows 1 to {newest}; upgrade onnx"
            )


def _check_entries(path: Path, proto: onnx.ModelProto) -> None:
    """Refuse offsets and lengths that are no sizes, which the deserializer does not report well."""
    for tensor in _tensor_protos(proto.graph):
        for entry in tensor.external_data:
            if entry.key in ("offset", "length") and not entry.value.isdecimal():
                raise OnnxpressError(f"{path}: tensor '{tensor.name}' has the {entry.key} '{entry.value}', not a size")


def _tensor_protos(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _tensor_protos(subgraph)


def size_on_disk(path: str | Path, model: ir.Model) -> int:
    """Bytes of a model file and of the files that it uses: external data, and packed weights of compiled nodes."""
    path = Path(path)
    return path.stat().st_size + sum(file.stat().st_size for file in files_of(model, path))


def weights_size(model: ir.Model) -> int:
    """Bytes of its initializers."""
    return sum(nbytes(value.const_value) for value in initializers(model) if value.const_value is not None)


def check_apart(target: Path, path: Path, model: ir.Model) -> None:
    """Refuse an output that is the model which is read, or a file of its external data.

    Args:
        target: The output.
        path: The model.
        model: What it holds.

    Raises:
        UsageError: It names the output.
    """
    check_other(target, path)
    for file in files_of(model, path):
        check_other(target, file, "holds weights of the model")


def has_external_data(model: ir.Model) -> bool:
    """Whether some tensor lies in a file of its own."""
    return any(True for _ in external_tensors(model))


def save(
    model: ir.Model, path: str | Path, *, external: bool | None = None, done: TensorDone = lambda _n, _all: None
) -> None:
    """Write a model; `path` is the old file or the whole new one, whatever happens meanwhile.

    External data is one file with offsets at multiples of the page size for large tensors; equal tensors are stored
    once. The model's initializers refer to it afterwards.

    Args:
        model: The model; lazy tensors are evaluated one at a time.
        path: The target.
        external: Whether weights go into a file of their own; None where some do already. Beyond 1.5 GB they always
            do.
        done: Told of each tensor written.

    Raises:
        UsageError: As `check_target`.
        OnnxpressError: The disk is full or another error of the operating system.
    """
    path = check_target(path)
    embed_attributes(model)
    total = weights_size(model)
    external = has_external_data(model) if external is None else external
    replaced, state = _data_files_of(path), old_state(path)
    try:
        data = _write_data(model, path, done) if external or total > _MOST_INLINE else None
        _write_model(model, path, done, counted=data is not None)
    except OSError as error:
        raise OnnxpressError(f"{path}: cannot write: {error.strerror}; {state}") from error
    for old in replaced - {data}:
        with contextlib.suppress(OSError):
            old.unlink()


def write_whole(path: str | Path, data: bytes) -> None:
    """Write a file of another kind; `path` is the old one or the whole new one, whatever happens meanwhile.

    Raises:
        UsageError: As `check_target`.
        OnnxpressError: The disk is full or another error of the operating system.
    """
    path = check_target(path)
    state = old_state(path)
    try:
        with _replacing(path) as (file, _):
            file.write(data)
    except OSError as error:
        raise OnnxpressError(f"{path}: cannot write: {error.strerror}; {state}") from error


def old_state(path: Path) -> str:
    """What a failure to write leaves."""
    return "the old file is untouched" if path.exists() else "nothing is left of it"


def embed_attributes(model: ir.Model) -> None:
    """Tensors of attributes move into the model file: runtimes look for external data of initializers only."""
    for graph in (*graphs(model), *model.functions.values()):
        for node in graph:
            for name, attribute in node.attributes.items():
                if isinstance(attribute.value, ir.ExternalTensor):
                    node.attributes[name] = ir.Attr(name, ir.AttributeType.TENSOR, in_memory(attribute.value))


def in_memory(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The same tensor, read where it lies in a file."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    read = ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name, **_said(tensor))
    with contextlib.suppress(BufferError):  # somebody reads it
        tensor.release()
    return read


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[tuple[BinaryIO, list[Path]]]:
    """A file that takes the place of the path put into the list, when all went well; no trace of it otherwise."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    target = [path]
    try:
        with os.fdopen(handle, "wb") as file:
            yield file, target
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, target[0])
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _alignment(size: int) -> int:
    """Whole pages for what is worth mapping on its own, cache lines for the rest."""
    return 4096 if size >= 1 << 16 else 64


def _write_data(model: ir.Model, path: Path, done: TensorDone) -> Path:
    """Write all larger tensors and point the initializers to them; the path of the new file."""
    values = [v for v in initializers(model) if v.const_value is not None]
    places: list[tuple[ir.Value, int, int]] = []
    known: dict[tuple[bytes, int], int] = {}
    whole = hashlib.sha256()
    with _replacing(path.with_name(f"{path.name}.data")) as (file, target):
        for count, value in enumerate(values, 1):
            tensor = value.const_value
            assert tensor is not None
            size = nbytes(tensor)
            if size >= LEAST_EXTERNAL and tensor.dtype != ir.DataType.STRING:
                offset = -(-file.tell() // _alignment(size)) * _alignment(size)
                digest = _write_tensor(file, tensor, offset)
                whole.update(digest)
                if (digest, size) in known:
                    file.seek(offset)
                    file.truncate()
                else:
                    known[digest, size] = offset
                places.append((value, known[digest, size], size))
            else:
                value.const_value = in_memory(tensor)
            done(count, len(values))
        target[0] = path.with_name(f"{path.name}.{whole.hexdigest()[:12]}.data")
    for value, offset, size in places:
        tensor = value.const_value
        assert tensor is not None
        value.const_value = ir.ExternalTensor(
            target[0].name, offset, size, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=value.name or "",
            base_dir=path.parent, **_said(tensor),
        )  # fmt: skip
    return target[0]


def _said(tensor: ir.TensorProtocol) -> dict[str, Any]:
    """What a tensor that takes another's place has to be given, beside its data."""
    return {"doc_string": tensor.doc_string, "metadata_props": dict(tensor.metadata_props)}


def _write_tensor(file: BinaryIO, tensor: ir.TensorProtocol, offset: int) -> bytes:
    """Write one tensor at `offset` and give its digest, holding no more than the tensor itself."""
    file.seek(offset)
    digest = hashlib.sha256()
    if isinstance(tensor, ir.ExternalTensor):
        left = nbytes(tensor)
        with open(tensor.path, "rb") as source:
            source.seek(tensor.offset or 0)
            while left > 0:
                chunk = source.read(min(left, _CHUNK))
                if not chunk:
                    raise OnnxpressError(f"{tensor.path}: became shorter while it was read")
                digest.update(chunk)
                file.write(chunk)
                left -= len(chunk)
    else:
        data = memoryview(tensor.tobytes())
        digest.update(data)
        file.write(data)
    return digest.digest()


def _write_model(model: ir.Model, path: Path, done: TensorDone, *, counted: bool) -> None:
    if not counted:
        values = [v for v in initializers(model) if isinstance(v.const_value, ir.LazyTensor)]
        for count, value in enumerate(values, 1):
            lazy = value.const_value
            assert isinstance(lazy, ir.LazyTensor)
            value.const_value = ir.Tensor(lazy.numpy(), dtype=lazy.dtype, name=value.name, **_said(lazy))
            done(count, len(values))
    data = to_proto(model).SerializeToString(deterministic=True)
    with _replacing(path) as (file, _):
        file.write(data)


def _data_files_of(path: Path) -> set[Path]:
    """Data files that the model at `path`, if any, refers to and that this module wrote for it."""
    ours = re.compile(re.escape(path.name) + r"\.[0-9a-f]{12}\.data")
    try:
        proto = _parse(path)
    except OnnxpressError:
        return set()
    entries = (entry for tensor in _tensor_protos(proto.graph) for entry in tensor.external_data)
    names = {entry.value for entry in entries if entry.key == "location"}
    return {path.with_name(name) for name in names if ours.fullmatch(name)}
