"""Whether PyTorch is there."""

from __future__ import annotations

import importlib.util

from ..errors import UsageError, lacking


def require_torch(what: str) -> None:
    """Ask for the package torch, without importing it.

    Args:
        what: Needs it, as in "method dwq".

    Raises:
        UsageError: It is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise UsageError(lacking(what, "the package torch", "torch"))
