"""Offline conversion of ONNX models into low-bit forms, and reports on what it did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import OnnxpressError, UsageError
from .recipe import Override, Recipe

if TYPE_CHECKING:
    from .calibration import Calibration
    from .context import compile_context
    from .pipeline import optimize
    from .report import ContextReport, Report

__all__ = [
    "Calibration", "ContextReport", "OnnxpressError", "Override", "Recipe", "Report", "UsageError", "compile_context",
    "optimize",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # onnx and onnxscript take a second to import; a command that only prints its help should not.
    if name == "optimize":
        from .pipeline import optimize

        return optimize
    if name == "Calibration":
        from .calibration import Calibration

        return Calibration
    if name == "compile_context":
        from .context import compile_context

        return compile_context
    if name in ("ContextReport", "Report"):
        from . import report

        return getattr(report, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
