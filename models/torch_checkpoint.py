"""Reading a PyTorch checkpoint without PyTorch, and without running what is in it.

The file is a row of pickles in the layout that `torch.save` wrote before version 1.6: a magic number, a protocol, facts
about the machine, then the object itself and the list of its storages' keys, and behind them each storage as its count
and its numbers. In the object, a storage is a persistent id ("storage", type, key, location, count, view) and a tensor
a call of `torch._utils._rebuild_tensor_v2` on one. The names that a pickle may call are the three that a dictionary of
tensors needs, and they mean functions of ours that only take notes; any other name is refused.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from onnxpress.optimizer.errors import OnnxpressError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_TYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


@dataclass(frozen=True)
class _Storage:
    dtype: np.dtype[Any]
    key: str
    count: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_state_dict(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a checkpoint by name, float32 or int64.

    Raises:
        OnnxpressError: The file is not a dictionary of dense tensors in that layout, is cut off, or asks for anything
            else to be called.
    """
    with open(path, "rb") as file:
        try:
            return _read(file)
        except OnnxpressError as error:
            raise OnnxpressError(f"{path}: {error}") from None
        except Exception as error:  # a damaged pickle raises nearly anything
            raise OnnxpressError(f"{path}: not a PyTorch checkpoint: {str(error) or type(error).__name__}") from error


def _read(file: BinaryIO) -> dict[str, np.ndarray[Any, Any]]:
    if file.read(2) == b"PK":
        raise OnnxpressError("a checkpoint in the layout of PyTorch 1.6 and later; only the older one is read")
    file.seek(0)
    if (_Unpickler(file).load(), _Unpickler(file).load()) != (_MAGIC, _PROTOCOL):
        raise OnnxpressError("not a PyTorch checkpoint: it does not begin with the magic number and protocol")
    _Unpickler(
        file
    ).load()  # sizes of C types and byte order of the machine that wrote it; the numbers say it themselves
    tensors = _Unpickler(file).load()
    keys = _Unpickler(file).load()
    if not isinstance(tensors, dict) or not all(isinstance(tensor, _Tensor) for tensor in tensors.values()):
        raise OnnxpressError("not a dictionary of tensors")
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    data = {key: _numbers(file, storages[key]) for key in keys}
    return {str(name): _view(tensor, data[tensor.storage.key]) for name, tensor in tensors.items()}


def _numbers(file: BinaryIO, storage: _Storage) -> np.ndarray[Any, Any]:
    (count,) = np.frombuffer(file.read(8), "<i8")
    if count != storage.count:
        raise OnnxpressError(f"storage '{storage.key}' has {count} numbers, not {storage.count}")
    return np.frombuffer(file.read(count * storage.dtype.itemsize), storage.dtype, count)


def _view(tensor: _Tensor, data: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    strides = [stride * data.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(data[tensor.offset :], tensor.shape, strides, writeable=False)


def _tensor(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object) -> _Tensor:
    if len(strides) != len(shape) or min(0, offset, *shape, *strides) < 0:
        raise OnnxpressError(f"a tensor of shape {shape}, strides {strides} and offset {offset} makes no sense")
    reach = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    # More elements than the storage has would be one number seen many times: memory out of nothing.
    if 0 in shape or reach >= storage.count or math.prod(shape) > storage.count:
        raise OnnxpressError(
            f"a tensor of shape {shape} and strides {strides} does not lie in its storage '{storage.key}'"
        )
    return _Tensor(storage, offset, shape, strides)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        raise OnnxpressError(f"asks for {module}.{name}, which is no part of a dictionary of tensors; not run")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _location, count, view = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or view is not None:
            raise OnnxpressError("holds something other than whole storages")
        return _Storage(dtype, str(key), int(count))
