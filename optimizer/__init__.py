"""Offline conversion of ONNX models into low-bit forms, and reports on what it did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import OnnxpressError, UsageError
from .recipe import Override, Recipe

if TYPE_CHECKING:
    from .pipeline import optimize
    from .report import Report

__all__ = ["OnnxpressError", "Override", "Recipe", "Report", "UsageError", "optimize"]


def __getattr__(name: str) -> Any:
    # onnx and onnxscript take a second to import; a command that only prints its help should not.
    if name == "optimize":
        from .pipeline import optimize

        return optimize
    if name == "Report":
        from .report import Report

        return Report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
