"""ONNX Runtime sessions, opened the same way everywhere.

So they are by a process that does nothing else, which is why what takes long to import waits until it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from onnxpress import custom_ops, ep

from ..errors import OnnxpressError, UsageError
from ..quantization.threads import limit

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime as ort

FOLDER_KEY = "session.model_external_initializers_file_folder_path"
"""Entry that tells a session of a model's bytes where external data lies."""

_FUSED = ("QLinearMatMul", "MatMulIntegerToFloat", "QGemm")
_PROVIDER_OPTIONS = ("accuracy_level", "claim", "isa", "verify", "unknown option")
_FATAL_ONLY = 4  # errors come as exceptions, which say the same


def uses_our_ops(model: ir.Model) -> bool:
    """Whether some node is of domain `onnxpress`."""
    return "onnxpress" in model.graph.opset_imports


def compiled_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """The nodes that `onnxpress compile` wrote, which run on our execution provider alone."""
    from ..model_io.external_data import context_nodes

    for node in context_nodes(model):
        source = node.attributes.get("source")
        if source is not None and source.value == ep.NAME:
            yield node


def is_compiled(model: ir.Model) -> bool:
    """Whether the model runs on our execution provider alone."""
    return any(True for _ in compiled_nodes(model))


def session_options(
    *,
    threads: int | None = None,
    ours: bool = False,
    provider: Mapping[str, str] | None = None,
    config: Mapping[str, str] | None = None,
) -> ort.SessionOptions:
    """Options with our library registered where it is needed.

    Args:
        threads: Threads of the intra-op pool; None leaves the choice to ONNX Runtime, unless work is limited.
        ours: Register the custom ops.
        provider: Append our execution provider with these options.
        config: Session configuration entries.

    Raises:
        UsageError: ONNX Runtime does not take an entry.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    if (threads := threads or limit()) is not None:
        options.intra_op_num_threads = threads
    for key, value in (config or {}).items():
        try:
            options.add_session_config_entry(key, value)
        except RuntimeError as error:
            raise UsageError(f"session option {key}={value}: {error}") from error
    if ours:
        custom_ops.register(options)
    if provider is not None:
        ep.append(options, **provider)
        options.add_session_config_entry(ep.RECORD_ASSIGNMENT, "1")
    return options


def provider_options(wanted: bool, claim: str | None = None) -> dict[str, str] | None:
    """Options of our execution provider, None where it is not wanted; who names families for it to take wants it."""
    if claim is not None:
        return {"claim": claim}
    return {} if wanted else None


def open_session(
    model: str | Path | bytes, options: ort.SessionOptions, name: str | Path | None = None
) -> ort.InferenceSession:
    """A session on the CPU, and on our execution provider where the options have it.

    Args:
        model: A path, or a serialized model.
        options: As `session_options` makes them.
        name: What to call the model in an error.

    Raises:
        UsageError: An option of our execution provider is wrong.
        OnnxpressError: ONNX Runtime refuses the model.
    """
    import onnxruntime as ort

    source = model if isinstance(model, bytes) else str(model)
    shown = name or ("model" if isinstance(model, bytes) else model)
    providers = None if options.has_providers() else ["CPUExecutionProvider"]
    try:
        # Without its fallback: ONNX Runtime 1.23 takes a wrong option as a reason to do without our provider.
        return ort.InferenceSession(source, options, providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime raises a type for each of its status codes
        message = " ".join(str(error).split())
        if (wrong := wrong_option(message)) is not None:
            raise UsageError(wrong) from error
        if not options.has_providers() and _holds_compiled(model):
            raise OnnxpressError(
                f"{shown}: is compiled for our execution provider, on which alone it runs: give --ep, or in Python "
                "ep.append to the session's options"
            ) from error
        raise OnnxpressError(f"{shown}: ONNX Runtime cannot load the model: {message}{_hint(message)}") from error


def wrong_option(message: str) -> str | None:
    """What our execution provider says of a wrong option, in an error of ONNX Runtime's; None in another."""
    begin = message.find(f"{ep.NAME}: ")
    names = tuple(f"{ep.NAME}: {name} " for name in _PROVIDER_OPTIONS)
    return message[begin:] if begin >= 0 and message.startswith(names, begin) else None


def _holds_compiled(source: str | Path | bytes) -> bool:
    """`is_compiled` of what ONNX Runtime refused, perhaps no model. Its words differ from version to version."""
    import onnx
    import onnx_ir as ir

    from ..model_io import storage

    try:
        model = ir.from_proto(onnx.load_from_string(source)) if isinstance(source, bytes) else storage.load(source)
        return is_compiled(model)
    except Exception:  # deserializers raise whatever damaged files lead to; ONNX Runtime's own error is told instead
        return False


def _hint(message: str) -> str:
    """What helps where ONNX Runtime before 1.32 makes an operator of int8 of a product of FLOAT8, and refuses it."""
    fused = "float8" in message and any(name in message for name in _FUSED)
    return "; use ONNX Runtime 1.32 or newer, or the session entry session.disable_quant_qdq=1" if fused else ""
