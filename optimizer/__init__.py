"""Offline conversion of ONNX models into low-bit forms, and reports on what it did."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calibration import Calibration
    from .conversion.compile import compile_context
    from .conversion.pipeline import optimize
    from .errors import OnnxpressError, UsageError
    from .planning.report import ContextReport, Report
    from .settings.override import Override
    from .settings.recipe import Recipe

__all__ = [
    "Calibration", "ContextReport", "OnnxpressError", "Override", "Recipe", "Report", "UsageError", "compile_context",
    "optimize",
]  # fmt: skip

_PLACES = {
    "Calibration": "calibration",
    "ContextReport": "planning.report",
    "OnnxpressError": "errors",
    "Override": "settings.override",
    "Recipe": "settings.recipe",
    "Report": "planning.report",
    "UsageError": "errors",
    "compile_context": "conversion.compile",
    "optimize": "conversion.pipeline",
}


def __getattr__(name: str) -> Any:
    # onnx and onnxscript take a second to import; a command that only prints its help should not.
    if name in _PLACES:
        return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
