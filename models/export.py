"""Exporting a PyTorch model: through optimum, or without PyTorch where the network is one that is built here."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from onnxpress.optimizer.errors import OnnxpressError, UsageError, lacking

from .hub_folder import CONFIG, read_json

_MODEL = "model.onnx"
_ALONG = (CONFIG, "tokenizer.json")
"""Files of a model's folder that whoever uses the export needs."""


def export(model: str, output: str | Path | None = None, *, task: str = "auto", opset: int | None = None) -> Path:
    """Export a model to a folder in optimum's layout, whole or not at all.

    A folder with a Gemma-3 text encoder, such as EmbeddingGemma, is built by `gemma3.build_files`, which needs no
    PyTorch; with a task or an opset, and of any other network, the export is optimum's.

    Args:
        model: A folder in Hugging Face's layout, or the name of a model on the hub.
        output: The folder to make; by default one with the model's last name and "-onnx" here.
        task: As optimum names it, such as "feature-extraction"; "auto" takes the one that the model was saved for.
        opset: Opset of the export; None takes the exporter's default.

    Returns:
        The folder.

    Raises:
        UsageError: The output is there already or its parent is not, or the task cannot be told.
        OnnxpressError: The extra "export" is not installed, or the export fails.
    """
    folder = Path(output) if output is not None else Path(f"{Path(model).resolve().name}-onnx")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: is there already; name another folder with --output")
    if not folder.parent.is_dir():
        raise UsageError(f"{folder}: the folder {folder.parent} does not exist; create it first")
    if task == "auto" and opset is None and _is_gemma3_encoder(Path(model)):
        _build_gemma3(Path(model), folder)
    else:
        _export_through_optimum(model, folder, task, opset)
    return folder


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[Path]:
    """A folder that takes the place of another when all went well; no trace of it otherwise."""
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        yield made
        made.replace(folder)


def _is_gemma3_encoder(folder: Path) -> bool:
    from .gemma3_config import describes_encoder

    try:
        return describes_encoder(read_json(folder / CONFIG))
    except OnnxpressError:  # a name on the hub, or a folder of which optimum may know more
        return False


def _build_gemma3(source: Path, folder: Path) -> None:
    from . import gemma3

    with _made(folder) as made:
        gemma3.build_files(source, made / _MODEL)
        for name in _ALONG:
            if (source / name).is_file():
                shutil.copyfile(source / name, made / name)


def _export_through_optimum(model: str, folder: Path, task: str, opset: int | None) -> None:
    try:
        from optimum.exporters.onnx import main_export
    except ImportError as error:
        raise OnnxpressError(f"{lacking('export', 'optimum', 'export')} ({error})") from error
    if task == "auto" and Path(model).is_dir():
        task = _task_of(Path(model))
    try:
        with _made(folder) as made:
            main_export(model, output=str(made), task=task, opset=opset)
    except Exception as error:  # the exporter raises whatever its many layers do
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise OnnxpressError(f"{model}: optimum cannot export this model: {lines[0]}") from error


def _task_of(folder: Path) -> str:
    """The task of a saved model, by the class that its config names; optimum only asks the hub."""
    import transformers
    from optimum.exporters.tasks import TasksManager

    try:
        name = json.loads((folder / CONFIG).read_text("utf-8"))["architectures"][0]
        task = str(TasksManager.infer_task_from_model(getattr(transformers, name)))
    except Exception as error:  # no such file, key or class, or a class without a task
        raise UsageError(
            f"{folder}: its config.json does not tell the task; name it with --task, such as feature-extraction"
        ) from error
    return f"{task}-with-past" if task == "text-generation" else task
