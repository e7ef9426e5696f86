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
    check_there(model)
    path = Path(model)
    if path.is_dir():
        return _in_folder(path)
    if path.exists():
        return path
    from onnxpress import models

    return models.path(str(model))


def check_there(*sources: str | Path) -> None:
    """Refuse what is neither a file, a folder nor a name of the catalogue, before anything is read or fetched.

    Raises:
        OnnxpressError: It names the first.
    """
    for source in sources:
        if Path(source).exists():
            continue
        from onnxpress import models

        name = str(source)
        if name in models.names():
            continue
        if Path(source).suffix or os.sep in name:
            raise OnnxpressError(f"{name}: no such file")
        known = suggestion(name, models.names())
        raise OnnxpressError(f"{name}: no such file, and no model of the catalogue; {known}")


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
