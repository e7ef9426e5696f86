"""C++ kernels for low-bit weights, as one library of custom ops for ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxruntime import SessionOptions

__all__ = ["library_path", "register"]

_REGISTERED = "onnxpress.custom_ops.registered"


def library_path() -> str:
    """Path of `libonnxpress.so`, the one file that ONNX Runtime needs, from any language.

    Raises:
        FileNotFoundError: The package was installed without its compiled part.
    """
    path = Path(__file__).with_name("libonnxpress.so")
    if not path.exists():
        from . import _kernels

        path = Path(_kernels.__file__).with_name("libonnxpress.so")
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: reinstall onnxpress with a C++17 compiler at hand")
    return str(path)


def register(session_options: SessionOptions) -> None:
    """Make nodes of domain `onnxpress` run on our kernels in sessions with these options.

    Registering twice is harmless.

    Args:
        session_options: Options of a session that is not created yet.

    Raises:
        RuntimeError: ONNX Runtime is too old, or ONNXPRESS_ISA asks for instructions this CPU lacks.
    """
    try:
        session_options.get_session_config_entry(_REGISTERED)
    except RuntimeError:
        session_options.register_custom_ops_library(library_path())
        session_options.add_session_config_entry(_REGISTERED, "1")
