"""Exporting a PyTorch model through optimum."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from onnxpress.optimizer.errors import OnnxpressError, UsageError


def export(model: str, output: str | Path | None = None, *, task: str = "auto", opset: int | None = None) -> Path:
    """Export a model to a folder in optimum's layout, whole or not at all.

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
    try:
        from optimum.exporters.onnx import main_export
    except ImportError as error:
        raise OnnxpressError(f'export needs optimum: pip install "onnxpress[export]" ({error})') from error
    if task == "auto" and Path(model).is_dir():
        task = _task_of(Path(model))
    try:
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            main_export(model, output=str(made), task=task, opset=opset)
            made.replace(folder)
    except Exception as error:  # the exporter raises whatever its many layers do
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise OnnxpressError(f"{model}: optimum cannot export this model: {lines[0]}") from error
    return folder


def _task_of(folder: Path) -> str:
    """The task of a saved model, by the class that its config names; optimum only asks the hub."""
    import transformers
    from optimum.exporters.tasks import TasksManager

    try:
        name = json.loads((folder / "config.json").read_text("utf-8"))["architectures"][0]
        task = str(TasksManager.infer_task_from_model(getattr(transformers, name)))
    except Exception as error:  # no such file, key or class, or a class without a task
        raise UsageError(
            f"{folder}: its config.json does not tell the task; name it with --task, such as feature-extraction"
        ) from error
    return f"{task}-with-past" if task == "text-generation" else task
