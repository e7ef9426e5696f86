"""Options of sessions that tests open."""

from __future__ import annotations

import onnxruntime as ort
from onnxpress import ep

KNOWS_WHO_RUNS_WHAT = hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")
"""ONNX Runtime 1.23 does not."""

RUNS_FLOAT8_PRODUCTS = tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 32)
"""Before, ONNX Runtime takes a MatMul of rounded FLOAT8 tensors, up to 1.27 a Gemm, for one of int8, and refuses it."""

RUNS_TWO_BITS = tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 24)
"""Before, its MatMulNBits has 4 and 8 bits."""


def options(**settings: object) -> ort.SessionOptions:
    """Quiet, with these attributes set."""
    made = ort.SessionOptions()
    made.log_severity_level = 4
    for name, value in settings.items():
        setattr(made, name, value)
    return made


def taken(session: ort.InferenceSession) -> list[str] | None:
    """Operators on the execution provider, sorted; unknown, so None, before ONNX Runtime 1.24."""
    if not KNOWS_WHO_RUNS_WHAT:
        return None
    parts = [part for part in session.get_provider_graph_assignment_info() if part.ep_name == ep.NAME]
    return sorted(node.op_type for part in parts for node in part.get_nodes())


def on_provider(model: object, **given: object) -> ort.InferenceSession:
    """A session with the execution provider under these options, but without the custom ops."""
    chosen = options()
    ep.append(chosen, **given)
    if KNOWS_WHO_RUNS_WHAT:
        chosen.add_session_config_entry(ep.RECORD_ASSIGNMENT, "1")
    return ort.InferenceSession(model, chosen, enable_fallback=0)
