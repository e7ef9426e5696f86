"""Where models come from: files, folders of exported models, and the catalogue."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from .errors import OnnxpressError, suggestion
from .quantization.schemes import SCHEMES


def resolve(model: str | Path) -> Path:
    """The ONNX file that the user means.

    Args:
        model: A file, a folder of an exported model, or a name of the catalogue such as "minilm".

    Raises:
        OnnxpressError: There is no such file, or the folder holds no model or several.
    """
    path = Path(model)
    if path.is_dir():
        return _in_folder(path)
    if path.exists():
        return path
    from onnxpress import models

    if str(model) in models.names():
        return models.path(str(model))
    if path.suffix or os.sep in str(model):
        raise OnnxpressError(f"{model}: no such file")
    raise OnnxpressError(
        f"{model}: no such file, and no model of the catalogue; {suggestion(str(model), models.names())}"
    )


def _in_folder(folder: Path) -> Path:
    if (folder / "model.onnx").is_file():
        return folder / "model.onnx"
    there = sorted(folder.glob("*.onnx"))
    found = [path for path in there if not _is_made_of(path, there)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise OnnxpressError(f"{folder}: the folder holds no .onnx file")
    names = ", ".join(path.name for path in found)
    raise OnnxpressError(f"{folder}: the folder holds several models, name one of {names}")


def _is_made_of(path: Path, others: Collection[Path]) -> bool:
    """Whether a file is called as the converted or compiled form of one beside it."""
    stem, _, kind = path.stem.rpartition(".")
    return kind in (*SCHEMES, "ctx") and path.with_name(f"{stem}.onnx") in others
