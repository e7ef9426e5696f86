"""Statistics as a file: an .npz of plain arrays, which is read as hostile.

"header" holds JSON: the version, the model, and for each tensor its name and numbers. What tensor i keeps besides is in
the arrays "i.histogram", "i.channels" (three rows: magnitudes, sums, sums of squares) and "i.gram".
"""

from __future__ import annotations

import io
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ..errors import OnnxpressError, option
from ..model_io.storage import old_state
from ..model_io.target import check_target
from .histogram import LEAST_EXPONENT, MOST_EXPONENT, SIDE, Histogram
from .statistics import Channels, Statistics, StatisticsSpec, TensorStatistics

_VERSION = 1
_SHOWN = 4  # names of arrays
_INTEGERS = ("count", "batches", "rows")
_FLOATS = ("low", "high", "moving_low", "moving_high")
_MOST_CHANNELS = 1 << 20
_MOST_MEMBER = 1 << 34  # bytes


def save(statistics: Statistics, path: str | Path) -> None:
    """Write statistics; `path` is the old file or the whole new one.

    Raises:
        UsageError: Nothing can be written there.
        OnnxpressError: The disk is full or another error of the operating system.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    entries = []
    for index, (name, tensor) in enumerate(statistics.items()):
        entry, kept = _encode(tensor)
        entries.append({"name": name, **entry})
        arrays.update({f"{index}.{key}": array for key, array in kept.items()})
    header = json.dumps({"version": _VERSION, "model": statistics.model, "tensors": entries})
    write_npz(path, {"header": np.frombuffer(header.encode(), np.uint8), **arrays})


def write_npz(path: str | Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays by name; `path` is the old file or the whole new one.

    Raises:
        UsageError: Nothing can be written there.
        OnnxpressError: The disk is full or another error of the operating system.
    """
    path = check_target(path)
    state = old_state(path)
    try:
        handle, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                _write(file, arrays)
            os.chmod(part, 0o666 & ~_umask())
            os.replace(part, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(part)
            raise
    except OSError as error:
        raise OnnxpressError(f"{path}: cannot write: {error.strerror}; {state}") from error


def _write(file: IO[bytes], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """The arrays as an .npz; only those of whole numbers, histograms most of all, are worth compressing."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")
            member.compress_type = zipfile.ZIP_STORED if array.dtype.kind == "f" else zipfile.ZIP_DEFLATED
            with archive.open(member, "w", force_zip64=True) as target:
                np.lib.format.write_array(target, np.ascontiguousarray(array), allow_pickle=False)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _encode(tensor: TensorStatistics) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    entry: dict[str, Any] = {key: getattr(tensor, key) for key in (*_INTEGERS, "finite")}
    entry.update({key: getattr(tensor, key).hex() for key in _FLOATS})
    entry["wanted"] = [tensor.wanted.histogram, tensor.wanted.channel_axis, tensor.wanted.gram]
    arrays: dict[str, npt.NDArray[Any]] = {}
    if tensor.histogram is not None:
        entry["exponent"], entry["zeros"] = tensor.histogram.exponent, tensor.histogram.zeros
        arrays["histogram"] = tensor.histogram.counts
    if tensor.channels is not None:
        entry["channel_count"] = tensor.channels.count
        arrays["channels"] = np.stack([tensor.channels.absmax, tensor.channels.total, tensor.channels.squares])
    if tensor.gram is not None:
        arrays["gram"] = tensor.gram
    return entry, arrays


def load(path: str | Path) -> Statistics:
    """Read what `save` wrote.

    Raises:
        OnnxpressError: The file is missing, damaged or of another kind.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if "header" not in names:
                raise OnnxpressError(
                    f"{path}: holds no statistics but arrays ({', '.join(names[:_SHOWN]) or 'none'}); give samples as "
                    f"data ({option('calibration')}), or make statistics of them with onnxpress calibrate"
                )
            header = json.loads(_array(archive, "header", np.uint8, 1).tobytes())
            _require(isinstance(header, dict), "its header is no mapping")
            version = header.get("version")
            _require(version == _VERSION, f"it is of version {version}, this is for version {_VERSION}")
            _require(isinstance(header.get("model"), str), "it names no model")
            _require(isinstance(header.get("tensors"), list), "it lists no tensors")
            tensors = {}
            for index, entry in enumerate(header["tensors"]):
                _require(isinstance(entry, dict) and isinstance(entry.get("name"), str), f"tensor {index} has no name")
                _require(entry["name"] not in tensors, f"tensor '{entry['name']}' is there twice")
                tensors[entry["name"]] = _decode(archive, index, entry)
            return Statistics(header["model"], tensors)
    except FileNotFoundError as error:
        raise OnnxpressError(f"{path}: no such file") from error
    except (OnnxpressError, MemoryError):
        raise
    except Exception as error:  # zipfile, zlib, json and numpy raise many types for a damaged file
        raise OnnxpressError(f"{path}: not a file of statistics, or a damaged one: {error}") from error


class _DamagedError(ValueError):
    pass


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise _DamagedError(text)


def _array(archive: zipfile.ZipFile, name: str, dtype: type, rank: int) -> npt.NDArray[Any]:
    member = archive.getinfo(f"{name}.npy")
    _require(member.file_size <= _MOST_MEMBER, f"'{name}' is too large")
    array = np.lib.format.read_array(io.BytesIO(archive.read(member)), allow_pickle=False)
    _require(array.dtype == dtype and array.ndim == rank, f"'{name}' is {array.dtype} of rank {array.ndim}")
    return array


def _decode(archive: zipfile.ZipFile, index: int, entry: Mapping[str, Any]) -> TensorStatistics:
    what = f"tensor '{entry['name']}'"
    wanted = _wanted(entry.get("wanted"), what)
    numbers: dict[str, Any] = {key: _whole(entry, key, what) for key in _INTEGERS}
    numbers.update({key: float.fromhex(entry[key]) for key in _FLOATS})
    _require(isinstance(entry.get("finite"), bool), f"{what}: finite is no truth value")
    tensor = TensorStatistics(wanted, finite=entry["finite"], **numbers)
    _require((tensor.count > 0) == (tensor.batches > 0), f"{what}: count and batches contradict each other")
    if tensor.count == 0:
        return TensorStatistics(wanted, finite=tensor.finite)
    bounds = (tensor.low, tensor.high, tensor.moving_low, tensor.moving_high)
    _require(all(map(math.isfinite, bounds)), f"{what}: its range is not finite")
    _require(tensor.low <= tensor.high, f"{what}: its range is the wrong way round")
    if wanted.histogram:
        tensor.histogram = _histogram(archive, index, entry, tensor.count, what)
    if wanted.channel_axis is not None:
        rows = _array(archive, f"{index}.channels", np.float64, 2)
        _require(len(rows) == 3 and 0 < rows.shape[1] <= _MOST_CHANNELS, f"{what}: wrong shape of channels")
        _require(bool(np.isfinite(rows).all()) and bool((rows[[0, 2]] >= 0).all()), f"{what}: impossible sums")
        tensor.channels = Channels(rows[0], rows[1], rows[2], _whole(entry, "channel_count", what))
    if wanted.gram:
        tensor.gram = _array(archive, f"{index}.gram", np.float64, 2)
        _require(tensor.gram.shape[0] == tensor.gram.shape[1], f"{what}: its Gram matrix is not square")
        _require(bool(np.isfinite(tensor.gram).all()), f"{what}: its Gram matrix is not finite")
    return tensor


def _wanted(value: Any, what: str) -> StatisticsSpec:
    _require(isinstance(value, list) and len(value) == 3, f"{what}: does not say what is kept")
    histogram, axis, gram = value
    _require(isinstance(histogram, bool) and isinstance(gram, bool), f"{what}: does not say what is kept")
    _require(axis is None or (isinstance(axis, int) and not isinstance(axis, bool)), f"{what}: its axis is no number")
    return StatisticsSpec(histogram, axis, gram)


def _whole(entry: Mapping[str, Any], key: str, what: str) -> int:
    value = entry.get(key)
    valid = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62
    _require(valid, f"{what}: {key} is {value!r}")
    return int(value)  # type: ignore[arg-type]


def _histogram(archive: zipfile.ZipFile, index: int, entry: Mapping[str, Any], count: int, what: str) -> Histogram:
    counts = _array(archive, f"{index}.histogram", np.int64, 1)
    zeros, exponent = _whole(entry, "zeros", what), entry.get("exponent")
    _require(len(counts) == 2 * SIDE and bool((counts >= 0).all()), f"{what}: its histogram has impossible counts")
    _require(sum(counts.tolist()) == count, f"{what}: its histogram does not add up to its count")
    _require(zeros <= counts[SIDE], f"{what}: its histogram has more zeros than its bin holds")
    valid = isinstance(exponent, int) and LEAST_EXPONENT <= exponent <= MOST_EXPONENT
    _require(valid, f"{what}: its histogram has the exponent {exponent!r}")
    return Histogram(counts, exponent, zeros)  # type: ignore[arg-type]
