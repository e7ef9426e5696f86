"""Offline conversion of ONNX models into low-bit forms, and reports on what it did."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calibration import Calibration
    from .context import compile_context
    from .errors import OnnxpressError, UsageError
    from .pipeline import optimize
    from .recipe import Override, Recipe
    from .report import ContextReport, Report

__all__ = [
    "Calibration", "ContextReport", "OnnxpressError", "Override", "Recipe", "Report", "UsageError", "compile_context",
    "optimize",
]  # fmt: skip

_PLACES = {
    "Calibration": "calibration", "ContextReport": "report", "OnnxpressError": "errors", "Override": "recipe",
    "Recipe": "recipe", "Report": "report", "UsageError": "errors", "compile_context": "context",
    "optimize": "pipeline",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    # onnx and onnxscript take a second to import; a command that only prints its help should not.
    if name in _PLACES:
        return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
