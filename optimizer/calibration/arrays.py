"""Samples from .npz and .npy files, one at a time: no file is read whole.

How an array holds samples of an input of rank r:

- rank r + 1: the leading axis counts samples;
- rank r, where the input's leading size is free, or is 1 and the array's is not: the same, and each sample has a
  leading axis of 1;
- otherwise it is a sample by itself, the same with each sample of the other inputs.

A folder holds .npz files, one after another, or .npy files: one named after each input, together like an .npz, or any
number of them where the model has one input.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import OnnxpressError, UsageError, option
from ..runtime.feeds import Feeds
from .files import IMAGES
from .inputs import Input, needed


def array_samples(path: Path, inputs: Sequence[Input]) -> Callable[[], Iterable[Feeds]]:
    """What starts to go through the samples of a file or folder.

    Args:
        path: An .npz or .npy file, or a folder of them.
        inputs: What the model takes.

    Raises:
        UsageError: It is of another kind, or its files do not say which input they are for.
    """
    if path.is_dir():
        return _in_folder(path, inputs)
    if path.suffix == ".npz":
        return lambda: _npz(path, inputs)
    if path.suffix == ".npy":
        return lambda: _npy({_only(path, inputs): path}, inputs)
    if path.suffix == ".txt":
        raise UsageError(f"{path}: lines of text need the model's tokenizer.json; name it with {option('tokenizer')}")
    raise UsageError(
        f"{path}: give an .npz or .npy file, a folder of them, a folder of images with an image recipe "
        f"({option('images')}), or text with a tokenizer.json ({option('tokenizer')})"
    )


def _in_folder(folder: Path, inputs: Sequence[Input]) -> Callable[[], Iterable[Feeds]]:
    archives, arrays = sorted(folder.glob("*.npz")), sorted(folder.glob("*.npy"))
    if archives and arrays:
        raise UsageError(f"{folder}: holds .npz and .npy files; keep one kind")
    if archives:
        return lambda: (sample for archive in archives for sample in _npz(archive, inputs))
    if not arrays:
        if any(file.suffix.lower() in IMAGES for file in folder.rglob("*")):
            raise UsageError(
                f"{folder}: holds images; say with {option('images')} how they become inputs, such as imagenet"
            )
        raise UsageError(f"{folder}: holds no samples: no .npz or .npy file")
    stems = {file.stem for file in arrays}
    if {entry.name for entry in needed(inputs)} <= stems <= {entry.name for entry in inputs}:
        return lambda: _npy({file.stem: file for file in arrays}, inputs)
    name = _only(folder, inputs)
    return lambda: (sample for file in arrays for sample in _npy({name: file}, inputs))


def _only(path: Path, inputs: Sequence[Input]) -> str:
    wanted = [entry.name for entry in needed(inputs)]
    if len(wanted) != 1:
        raise UsageError(
            f"{path}: the model has several inputs ({', '.join(wanted)}); give an .npz with an array for each"
        )
    return wanted[0]


def _npz(path: Path, inputs: Sequence[Input]) -> Iterator[Feeds]:
    with ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
            members = {item.filename.removesuffix(".npy"): item for item in archive.infolist()}
            names = _known(path, members, inputs)
            opened = {
                name: (stack.enter_context(archive.open(members[name])), members[name].file_size) for name in names
            }
        except OnnxpressError:
            raise
        except Exception as error:  # zipfile raises many types for a damaged file
            raise OnnxpressError(f"{path}: not a readable .npz file: {error}") from error
        yield from _samples(path, opened, inputs)


def _npy(files: Mapping[str, Path], inputs: Sequence[Input]) -> Iterator[Feeds]:
    path = next(iter(files.values()))
    with ExitStack() as stack:
        try:
            opened = {
                name: (stack.enter_context(open(file, "rb")), os.path.getsize(file)) for name, file in files.items()
            }
        except OSError as error:
            raise OnnxpressError(f"{path}: cannot read: {error.strerror}") from error
        yield from _samples(path if len(files) == 1 else path.parent, opened, inputs)


def _known(path: Path, found: Iterable[str], inputs: Sequence[Input]) -> list[str]:
    """The names of the inputs that the file holds: all but some that have defaults, and no other."""
    found, names = list(found), [entry.name for entry in inputs]
    if missing := [entry.name for entry in needed(inputs) if entry.name not in found]:
        raise UsageError(f"{path}: lacks the model's input '{missing[0]}'; it holds {', '.join(found) or 'nothing'}")
    if unknown := [name for name in found if name not in names]:
        raise UsageError(f"{path}: '{unknown[0]}' is no input of the model, which takes {', '.join(names)}")
    return [name for name in names if name in found]


def _samples(path: Path, opened: Mapping[str, tuple[IO[bytes], int]], inputs: Sequence[Input]) -> Iterator[Feeds]:
    """Samples from files that are read side by side."""
    readers = {entry.name: _Reader(path, *opened[entry.name], entry) for entry in inputs if entry.name in opened}
    counts = {name: reader.count for name, reader in readers.items() if reader.count is not None}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"'{name}' {count}" for name, count in counts.items())
        raise UsageError(f"{path}: the arrays hold different numbers of samples: {listed}")
    count = next(iter(counts.values()), 1)
    for index in range(count):
        yield {name: reader.next(index) for name, reader in readers.items()}


class _Reader:
    """The samples of one array, read in turn from an .npy stream."""

    def __init__(self, path: Path, stream: IO[bytes], size: int, entry: Input) -> None:
        self._where = f"{path}: input '{entry.name}'"
        self._stream = stream
        self._kept: np.ndarray | None = None
        try:
            shape, fortran, self._dtype = _header(stream)
        except Exception as error:  # numpy raises many types for what is no header
            raise OnnxpressError(f"{self._where}: not a readable array: {error}") from error
        if self._dtype.hasobject:
            raise OnnxpressError(f"{self._where}: holds Python objects, which are not read; save plain arrays")
        own = shape if entry.shape is None else entry.shape  # of an input of any rank, an array is one sample
        joined = len(shape) == len(own) > 0 and own is not shape and (entry.has_free_batch or own[0] == 1 != shape[0])
        self.count = shape[0] if joined or len(shape) == len(own) + 1 else None
        self._shape = (1, *shape[1:]) if joined else shape[1:] if self.count is not None else shape
        self._bytes = math.prod(self._shape) * self._dtype.itemsize
        left = size - stream.tell()
        if self._bytes * (self.count if self.count is not None else 1) > left:
            raise OnnxpressError(f"{self._where}: is cut off: {left} bytes do not hold an array of shape {list(shape)}")
        self._whole = self._read_columns(shape) if fortran and len(shape) > 1 else None

    def _read_columns(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array whose first axis varies fastest has no samples in a row: it is read whole."""
        data = self._read(math.prod(shape) * self._dtype.itemsize)
        array = np.frombuffer(data, self._dtype).reshape(shape, order="F")
        return np.ascontiguousarray(array)

    def next(self, index: int) -> np.ndarray:
        """The sample of this index; they are asked for in order."""
        if self._whole is not None:
            return (self._whole if self.count is None else self._whole[index]).reshape(self._shape)
        if self._kept is None:
            array = np.frombuffer(self._read(self._bytes), self._dtype).reshape(self._shape)
            if self.count is not None:
                return array
            self._kept = array
        return self._kept

    def _read(self, size: int) -> bytes:
        try:
            data = self._stream.read(size)
        except Exception as error:  # a damaged archive: zipfile and zlib raise their own types
            raise OnnxpressError(f"{self._where}: damaged: {error}") from error
        if len(data) != size:
            raise OnnxpressError(f"{self._where}: ends too early")
        return data


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"version {version} of the format is not known")
