"""Options of sessions that tests open, and what the ONNX Runtime can that opens them."""

from __future__ import annotations

from collections.abc import Iterable

import onnxruntime as ort
import pytest
from onnxpress import ep

VERSION = tuple(map(int, ort.__version__.split(".")[:2]))
_SINCE = {
    "assignment": (1, 24),
    "two bits": (1, 24),
    "opset 24": (1, 24),
    "windows": (1, 24),
    "overloads": (1, 27),
    "kernels of opset 22": (1, 24),
    "float8 products": (1, 32),
    "products of no rows": (1, 32),
    "random models": (1, 30),
}
"""From which version on ONNX Runtime can what some tests need; CI runs the oldest that is supported and the newest.

assignment: it tells who runs what.
two bits: its MatMulNBits has 2 bits beside 4 and 8.
opset 24: it takes models of it.
windows: a window of an attention is of as many keys as it says; before, of one more.
overloads: it tells functions apart that differ in the overload alone; before, it takes the first for all.
kernels of opset 22: of all operators that changed in opsets 22 and 23, as LpNormalization and QuantizeLinear did.
float8 products: before, it takes a MatMul of rounded FLOAT8 tensors, up to 1.27 a Gemm, for one of int8, which it
refuses.
products of no rows: it gives a product of an empty batch the right shape, in the standard operators of a whole layer.
random models: before, some end the process when it loads them, as they are and before anything is converted.
"""


def runs(feature: str) -> bool:
    """Whether this ONNX Runtime can what `_SINCE` lists."""
    return _SINCE[feature] <= VERSION


def needs(feature: str) -> pytest.MarkDecorator:
    """Skips a test where this ONNX Runtime cannot what `_SINCE` lists; what fails unlisted is a failure."""
    return pytest.mark.skipif(not runs(feature), reason=f"ONNX Runtime {ort.__version__} has not: {feature}")


def runnable(*schemes: str) -> tuple[str, ...]:
    """Those of these schemes whose models this ONNX Runtime runs."""
    rounds_both = [each.startswith("fp8-") and each.endswith(("static", "dynamic")) for each in schemes]
    products = runs("float8 products")
    return tuple(each for each, both in zip(schemes, rounds_both, strict=True) if products or not both)


def unrunnable(parameters: Iterable[object]) -> list[str]:
    """The schemes among the parameters of a test, or in recipes there, that this ONNX Runtime does not run.

    The scheme is the last word of a text.
    """
    settings = (value.get("scheme") if isinstance(value, dict) else value for value in parameters)
    named = (getattr(value, "scheme", value) for value in settings)
    last = [text.split()[-1] for text in named if isinstance(text, str) and text.strip()]
    return [scheme for scheme in last if not runnable(scheme)]


KNOWS_WHO_RUNS_WHAT = runs("assignment")
RUNS_FLOAT8_PRODUCTS = runs("float8 products")
RUNS_TWO_BITS = runs("two bits")


def spin_no_threads() -> None:
    """Let the threads of all sessions of this process sleep while they wait, for other tests want their cores.

    Spinning is a third of what small tests cost; it changes no result.
    """
    original = ort.InferenceSession.__init__

    def opened(self, path_or_bytes, sess_options=None, *args, **kwargs):
        chosen = ort.SessionOptions() if sess_options is None else sess_options
        chosen.add_session_config_entry("session.intra_op.allow_spinning", "0")
        original(self, path_or_bytes, chosen, *args, **kwargs)

    ort.InferenceSession.__init__ = opened


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
