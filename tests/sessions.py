"""Options of sessions that tests open."""

from __future__ import annotations

import onnxruntime as ort

KNOWS_WHO_RUNS_WHAT = hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")
"""ONNX Runtime 1.23 does not."""


def options(**settings: object) -> ort.SessionOptions:
    """Quiet, with these attributes set."""
    made = ort.SessionOptions()
    made.log_severity_level = 4
    for name, value in settings.items():
        setattr(made, name, value)
    return made
