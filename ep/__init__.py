"""The plugin execution provider: runs quantized nodes of stock models on the kernels of custom_ops.

options = ort.SessionOptions()
ep.append(options)
session = ort.InferenceSession("model.onnx", options)
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from onnxpress.custom_ops import library_path
from onnxpress.optimizer.errors import OnnxpressError

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["NAME", "RECORD_ASSIGNMENT", "EpError", "append", "assigned_nodes", "register", "session"]

NAME = "OnnxpressExecutionProvider"
"""Name of the execution provider in ONNX Runtime."""

RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"
"""Session configuration entry that `assigned_nodes` needs to be "1"."""


class EpError(OnnxpressError, RuntimeError):
    """The execution provider needs a newer ONNX Runtime."""


def register() -> None:
    """Make the execution provider known to this process's ONNX Runtime.

    Registering twice is harmless.

    Raises:
        EpError: ONNX Runtime is older than 1.23.
    """
    import onnxruntime as ort

    if not hasattr(ort, "get_ep_devices"):
        raise EpError(f"ONNX Runtime {ort.__version__} takes no plugins; from 1.23 on it does")
    if not _devices():
        ort.register_execution_provider_library(NAME, library_path())


def append(session_options: ort.SessionOptions, **options: object) -> None:
    """Offer the nodes of a session to the execution provider first; it leaves what it does not know to ONNX Runtime.

    Args:
        session_options: Options of a session that is not created yet.
        options: `accuracy_level`: 0 or 1 (float32), 3 (activations rounded to bfloat16) or 4 (to int8) instead of the
            nodes' own.
            `claim`: which nodes to take, names separated by commas: "matmul_nbits", "dequantized_matmul"
            (DequantizeLinear of a constant weight, then MatMul or Gemm), "qdq_matmul" (the same with
            DequantizeLinear of 8-bit activations), "dynamic_matmul" (MatMulInteger, scaled to float32), "gather"
            (GatherBlockQuantized), "block_sparse" (BlockSparseMatMul), "cached_attention" (GroupQueryAttention) and
            "minifloat" (MatMulMiniFloat). By default those of all families on which the kernels are faster than ONNX
            Runtime's; of a family that is named, all. Those that `onnxpress compile` saved are taken in any case.
            `isa`: "scalar", "neon", "i8mm", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512vbmi", "avx512bf16"
            or "amx", instead of what the CPU or ONNXPRESS_ISA says.
            `verify`: 1 computes each product a second time, slowly and in double precision, and logs the error
            whenever it is the largest so far. Of weights that `onnxpress compile` saved it checks the hashes too.

    Raises:
        EpError: ONNX Runtime is older than 1.23. A wrong option is an error when the session is created.
    """
    register()
    session_options.add_provider_for_devices(_devices(), {key: _text(value) for key, value in options.items()})


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def session(
    model: str | os.PathLike[str] | bytes, session_options: ort.SessionOptions | None = None, **options: object
) -> ort.InferenceSession:
    """A session on the execution provider, with the custom ops registered too.

    Args:
        model: A file or a serialized model.
        session_options: For ONNX Runtime; changed.
        options: As in `append`.

    Raises:
        EpError: As in `append`; beside that whatever ONNX Runtime raises for a model that it cannot load.
    """
    import onnxruntime as ort
    from onnxpress import custom_ops

    chosen = session_options if session_options is not None else ort.SessionOptions()
    custom_ops.register(chosen)
    append(chosen, **options)
    chosen.add_session_config_entry(RECORD_ASSIGNMENT, "1")
    # Without its fallback: ONNX Runtime 1.23 takes a wrong option as a reason to do without the provider.
    source = model if isinstance(model, bytes) else os.fspath(model)
    return ort.InferenceSession(source, chosen, enable_fallback=0)


def assigned_nodes(session: ort.InferenceSession) -> dict[str, list[str]]:
    """Which execution provider runs which nodes.

    Args:
        session: Made by `session`, or with "session.record_ep_graph_assignment_info" set to "1".

    Returns:
        Names of nodes by name of their provider. Nodes that ONNX Runtime made by fusion have names of its own.

    Raises:
        EpError: ONNX Runtime is older than 1.24, or was not told to record it.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        raise EpError("ONNX Runtime tells who runs what from version 1.24 on")
    nodes: dict[str, list[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        nodes.setdefault(part.ep_name, []).extend(node.name for node in part.get_nodes())
    return nodes


def _devices() -> list[ort.OrtEpDevice]:
    import onnxruntime as ort

    return [device for device in ort.get_ep_devices() if device.ep_name == NAME]
