"""Models in memory, as files for as long as ONNX Runtime needs them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from ..errors import OnnxpressError
from ..model_io import reading, storage
from .session import open_session, session_options, uses_our_ops

if TYPE_CHECKING:
    import onnxruntime as ort

_MOST_INLINE = 1_500_000_000  # protobuf ends at 2 GiB


@contextlib.contextmanager
def written(model: ir.Model) -> Iterator[Path]:
    """A model as a file in a folder of its own, which is removed afterwards; the model stays as it is.

    Raises:
        OnnxpressError: The folder for temporary files cannot be written to, or is full.
    """
    sizes = [value.const_value.nbytes for value in storage.initializers(model) if value.const_value is not None]
    least = storage.LEAST_EXTERNAL if sum(sizes) > _MOST_INLINE else max(sizes, default=0)
    with tempfile.TemporaryDirectory(prefix="onnxpress-") as folder:
        path = Path(folder) / "model.onnx"
        try:
            reading.save(model, path, f"{path.name}.data", least)
        except OSError as error:
            raise OnnxpressError(f"{folder}: cannot write a temporary model: {error.strerror}") from error
        yield path


@contextlib.contextmanager
def temporary_session(
    model: ir.Model, name: str = "model", threads: int | None = None
) -> Iterator[ort.InferenceSession]:
    """A session on a model in memory.

    Raises:
        OnnxpressError: As `written`, or ONNX Runtime refuses the model.
    """
    with written(model) as path:
        yield open_session(path, session_options(threads=threads, ours=uses_our_ops(model)), name)
