"""Inputs for a model: read from a file and checked, or random and plausible."""

from __future__ import annotations

import re
import types
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OnnxpressError, UsageError, option
from ..model_io.normalise import is_nameless

Feeds = dict[str, np.ndarray]

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
}
_MOST_ID = 100  # token ids from a range that every vocabulary has
_SIDE = 224  # of an image of unknown size
_COLOURS = 3  # of an image whose channels are open, as optimum exports them
_MOST_ELEMENTS = 1 << 30


_UNNAMED = "?"
"""All sizes without a name, as some exporters write them."""
_WORDS = {"past": r"past", "batch": r"batch", "sequence": r"seq|length|token"}


def random_feeds(
    inputs: list[Any],
    dims: Mapping[str, int],
    seed: int = 0,
    *,
    limits: Mapping[str, int] | None = None,
    side: int = _SIDE,
) -> Feeds:
    """Plausible inputs: masks of ones, positions that count up, small token ids, normal floats.

    Args:
        inputs: A session's inputs.
        dims: Sizes of symbolic dimensions: by exact name, or "batch", "sequence" and "past" for all whose names
            say so. A name such as "past + sequence" is the sum of its parts, and so is a total. Each open size can
            also be called after its input and axis, such as "x:1", and all without a name are "?".
        seed: Of the generator.
        limits: By input, the least number that an integer must not reach, as `token_limits` finds it.
        side: Of an image whose size is open.

    Raises:
        OnnxpressError: An input is of a type that cannot be made up, or absurdly large.
        UsageError: No input has a size of that name.
    """
    places = {_place(node, axis) for node in inputs for axis, size in enumerate(node.shape) if _is_open(size)}
    names = {size or _UNNAMED for node in inputs for size in node.shape if size is None or isinstance(size, str)}
    if unknown := sorted(set(dims) - {*_WORDS, *symbolic_sizes(inputs), *places, *names}):
        listed = ", ".join(symbolic_sizes(inputs)) or "none"
        raise UsageError(
            f"{option('dim')} {unknown[0]}: no input has a size of this name; the model's symbolic sizes: {listed}"
        )
    generator = np.random.default_rng(seed)
    limits = limits or {}
    return {node.name: _below(limits.get(node.name), _random(node, dims, side, generator)) for node in inputs}


def _below(limit: int | None, array: np.ndarray) -> np.ndarray:
    """Integers that index a table of so many rows."""
    return array % np.asarray(limit, array.dtype) if limit and array.dtype.kind in "iu" else array


def shared_inputs(first: str, one: list[Any], second: str, other: list[Any]) -> list[Any]:
    """The inputs of two models that are to be run on the same data; sizes that one of them fixes are fixed.

    Args:
        first: What to call the first model in an error.
        one: Inputs of its session.
        second: What to call the second model.
        other: Inputs of its session.

    Raises:
        UsageError: Names, types, numbers of axes or fixed sizes differ.
    """
    ours, theirs = ({node.name: node for node in nodes} for nodes in (one, other))
    if ours.keys() != theirs.keys():
        raise UsageError(f"{second}: has the inputs {', '.join(theirs)}, {first} has {', '.join(ours)}")
    shared = []
    for name, node in ours.items():
        also = theirs[name]
        sizes = list(zip(node.shape, also.shape, strict=False))
        clash = any(not _is_open(a) and not _is_open(b) and a != b for a, b in sizes)
        if node.type != also.type or len(node.shape) != len(also.shape) or clash:
            raise UsageError(
                f"{second}: input '{name}' is {also.type} {also.shape}, in {first} it is {node.type} {node.shape}"
            )
        shape = [a if _is_open(b) else b for a, b in sizes]
        shared.append(types.SimpleNamespace(name=name, type=node.type, shape=shape))
    return shared


def symbolic_sizes(inputs: list[Any]) -> list[str]:
    """Names of the inputs' sizes that a caller may choose."""
    names = [
        size if isinstance(size, str) and not is_nameless(size) else _place(node, axis)
        for node in inputs
        for axis, size in enumerate(node.shape)
        if _is_open(size)
    ]
    parts = [part.strip() for name in names for part in name.split("+")]
    return list(dict.fromkeys([*names, *parts]))


def _place(node: Any, axis: int) -> str:
    """What any open size may be called."""
    return f"{node.name}:{axis}"


def _is_open(size: int | str | None) -> bool:
    """Whether a caller may choose a size; ONNX Runtime has given -1 as it is and as None."""
    return not isinstance(size, int) or size < 0


def type_name(dtype: np.dtype) -> str:
    """What ONNX Runtime calls a tensor of such elements."""
    return next((name for name, known in _TYPES.items() if known == dtype), f"tensor({dtype})")


def _random(node: Any, dims: Mapping[str, int], side: int, generator: np.random.Generator) -> np.ndarray:
    if node.type not in _TYPES:
        advice = f"; give {option('data')}" if node.type.startswith("tensor(") else ", nor be given: it is no tensor"
        raise OnnxpressError(f"input {node.name} of type {node.type} cannot be made up{advice}")
    dtype = _TYPES[node.type]
    shape = _shape(node, dims, side)
    if np.prod([float(size) for size in shape]) > _MOST_ELEMENTS:
        raise OnnxpressError(f"input {node.name} of shape {shape} is too large to make up; give {option('data')}")
    name = node.name.lower()
    if np.issubdtype(dtype, np.floating):
        return generator.standard_normal(shape).astype(dtype)
    if dtype == np.bool_ or "mask" in name:
        return np.ones(shape, dtype)
    if "position" in name:
        return np.broadcast_to(np.arange(shape[-1] if shape else 1), shape).astype(dtype)
    if "type" in name:
        return np.zeros(shape, dtype)
    if name in ("sr", "sample_rate"):
        return np.full(shape, 16000, dtype)
    return generator.integers(0, _MOST_ID, shape).astype(dtype)


def _shape(node: Any, dims: Mapping[str, int], side: int) -> tuple[int, ...]:
    image = len(node.shape) == 4 and node.type == "tensor(float)" and _is_colours(node.shape[1])

    def size_of(axis: int, size: int | str | None) -> int:
        if isinstance(size, int) and not _is_open(size):
            return size
        default = (1, _COLOURS, side, side)[axis] if image else 1
        unnamed = dims.get(_UNNAMED, default) if not isinstance(size, str) or is_nameless(size) else default
        named = _size(size, dims, unnamed) if isinstance(size, str) else unnamed
        return dims.get(_place(node, axis), named)

    return tuple(size_of(axis, size) for axis, size in enumerate(node.shape))


def _is_colours(size: int | str | None) -> bool:
    return size in (1, 3) or (isinstance(size, str) and "channel" in size.lower())


def _size(name: str, dims: Mapping[str, int], default: int) -> int:
    if name in dims:
        return dims[name]
    if "+" in name:
        return sum(_size(part.strip(), dims, default) for part in name.split("+"))
    if "total" in name.lower() and "sequence" in dims:
        return dims.get("past", 0) + dims["sequence"]
    for word, pattern in _WORDS.items():
        if re.search(pattern, name.lower()) and word in dims:
            return dims[word]
    return default


def default_inputs(session: Any) -> list[Any]:
    """Inputs of a session that need not be given, because they have a default: OpenVINO knows none."""
    return list(session.get_overridable_initializers()) if hasattr(session, "get_overridable_initializers") else []


def fitted(feeds: Feeds, inputs: list[Any], model: str, defaults: Sequence[Any] = ()) -> Feeds:
    """Feeds of one model for another that may take floats of another width.

    Args:
        feeds: By input.
        inputs: A session's inputs.
        model: What to call its model in an error.
        defaults: Inputs that need not be given.

    Raises:
        UsageError: It has other inputs.
    """
    wanted = {node.name: np.dtype(_TYPES[node.type]) for node in (*inputs, *defaults) if node.type in _TYPES}
    given = feeds.keys() - {node.name for node in defaults}
    if names := {node.name for node in inputs} ^ given:
        raise UsageError(f"{model}: the data is for the inputs {', '.join(feeds)}; {', '.join(sorted(names))} differ")
    return {name: in_width(x, wanted.get(name, x.dtype)) for name, x in feeds.items()}


def in_width(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Floats as those of another width, of which too large ones are infinite; anything else as it is."""
    if array.dtype == dtype or not (is_float(array.dtype) and is_float(dtype)):
        return array
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def is_float(dtype: np.dtype) -> bool:
    """Whether elements are floats, those of 8 and 16 bits that NumPy itself does not know included."""
    return dtype.kind == "f" or (dtype.kind == "V" and "float" in dtype.name)


def arrays_of(output: object) -> list[np.ndarray]:
    """The tensors of an output: itself, those of a sequence, the values of a map, none of an optional that is empty."""
    if output is None:
        return []
    if isinstance(output, Mapping):
        return [np.asarray([output[key] for key in sorted(output)])]
    return [array for each in output for array in arrays_of(each)] if isinstance(output, list) else [np.asarray(output)]


def bytes_of(feeds: Feeds) -> int:
    """Bytes of all tensors."""
    return sum(array.nbytes for value in feeds.values() for array in arrays_of(value))


def read_arrays(path: str | Path, of: str = "") -> Feeds:
    """The arrays of an .npz file by name.

    Args:
        path: The file.
        of: What it should hold, for the message where it is none, such as " of masks".

    Raises:
        OnnxpressError: The file cannot be read.
    """
    if not Path(path).exists():
        raise OnnxpressError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        what = "a folder" if Path(path).is_dir() else "none"
        raise OnnxpressError(f"{path}: give an .npz file{of}, as np.savez(file, name=array) makes it; this is {what}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except Exception as error:  # numpy raises many types for a file that is no .npz
        raise OnnxpressError(f"{path}: not a readable .npz file{of}: {error}") from error


def read_feeds(path: str | Path, inputs: list[Any], defaults: Sequence[Any] = ()) -> Feeds:
    """Inputs from an .npz file.

    Args:
        path: Arrays by the names of the inputs; floats may be of another width.
        inputs: A session's inputs.
        defaults: Inputs that need not be given.

    Raises:
        OnnxpressError: The file cannot be read.
        UsageError: A name, type or shape does not fit.
    """
    arrays = read_arrays(path)
    expected = {node.name: node for node in (*inputs, *defaults)}
    if missing := sorted({node.name for node in inputs} - arrays.keys()):
        raise UsageError(
            f"{path}: lacks the model's input {', '.join(missing)}; it holds {', '.join(arrays) or 'nothing'}"
        )
    if unknown := sorted(arrays.keys() - expected.keys()):
        raise UsageError(f"{path}: {', '.join(unknown)} is no input of the model, which has {', '.join(expected)}")
    arrays = fitted(arrays, inputs, str(path), defaults)
    for name, array in arrays.items():
        _check(path, array, expected[name])
    if arrays and not any(array.size for array in arrays.values()):  # of a past, a first step has none
        name, array = next(iter(arrays.items()))
        raise UsageError(f"{path}: {name} has shape {list(array.shape)}, which holds no numbers to compare by")
    return arrays


def _check(path: str | Path, array: np.ndarray, node: Any) -> None:
    wanted = np.dtype(_TYPES[node.type]) if node.type in _TYPES else None
    if wanted is not None and array.dtype != wanted:
        raise UsageError(f"{path}: {node.name} is {array.dtype}, the model takes {wanted}")
    # ONNX Runtime gives no sizes for an input of any shape, as for one number.
    fits = not node.shape or (
        len(node.shape) == array.ndim
        and all(_is_open(size) or size == have for size, have in zip(node.shape, array.shape, strict=True))
    )
    if not fits:
        raise UsageError(f"{path}: {node.name} has shape {list(array.shape)}, the model takes {node.shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UsageError(f"{path}: {node.name} holds NaN or infinity as {array.dtype}")
