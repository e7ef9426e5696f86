"""Exporting a PyTorch model through optimum."""

from __future__ import annotations

from pathlib import Path

from onnxpress.optimizer.errors import OnnxpressError


def export(model: str, output: Path, *, task: str = "auto", opset: int | None = None) -> Path:
    """Export a model to ONNX in optimum's layout.

    Args:
        model: A folder in Hugging Face's layout, or the name of a model on the hub.
        output: The folder to write.
        task: As optimum names it, such as "feature-extraction"; "auto" guesses.
        opset: Opset of the export; None takes the exporter's default.

    Returns:
        The folder.

    Raises:
        OnnxpressError: The extra "export" is not installed, or the export fails.
    """
    try:
        from optimum.exporters.onnx import main_export
    except ImportError as error:
        raise OnnxpressError('export needs optimum: pip install "onnxpress[export]"') from error
    try:
        main_export(model, output=str(output), task=task, opset=opset)
    except Exception as error:  # the exporter raises whatever its many layers do
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise OnnxpressError(f"{model}: optimum cannot export the model: {lines[0]}") from error
    return output
