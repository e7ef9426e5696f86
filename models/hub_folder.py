"""Reading a model's folder in Hugging Face's layout: settings and weights, with errors that name file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from onnxpress.optimizer.errors import OnnxpressError

CONFIG, WEIGHTS = "config.json", "model.safetensors"

_FLOATS = ("F32", "BF16", "F16")
"""Types of tensors, as safetensors calls them, whose numbers float32 holds."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        OnnxpressError: The file is missing or holds something else.
    """
    found = parse_json(path)
    if not isinstance(found, dict):
        raise OnnxpressError(f"{path}: holds a JSON {type(found).__name__}, not an object of settings")
    return found


def parse_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OnnxpressError: The file is missing or no JSON.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise OnnxpressError(f"{path}: cannot read: {error.strerror}") from error
    except ValueError as error:  # of JSON and of UTF-8
        raise OnnxpressError(f"{path}: not a JSON file: {error}") from error


def read_weights(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a safetensors file by name, as float32; those of bfloat16 and float16 are widened.

    Raises:
        OnnxpressError: The file is missing or damaged, or a tensor is of a type that float32 does not hold.
    """
    import ml_dtypes  # noqa: F401  # makes bfloat16 a type of NumPy, which safetensors asks for by name
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise OnnxpressError(f"{path}: no such file; weights are read from one {path.name} alone")
    tensors = {}
    try:
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118  # the file is no mapping
                kind = file.get_slice(name).get_dtype()
                if kind not in _FLOATS:
                    raise OnnxpressError(f"{path}: tensor '{name}' is {kind}, not one of {', '.join(_FLOATS)}")
                tensors[name] = file.get_tensor(name).astype(np.float32, copy=False)
    except (SafetensorError, OSError) as error:
        raise OnnxpressError(f"{path}: not a safetensors file: {error}") from error
    return tensors
