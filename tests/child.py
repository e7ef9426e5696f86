"""Sessions in a process of their own, so that a crash is a result and not the end of the tests."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

_FAMILIES = (
    # named, they are taken fast or not
    "matmul_nbits,dequantized_matmul,qdq_matmul,dynamic_matmul,gather,block_sparse,minifloat"
)


class CrashError(Exception):
    """The process died."""


class Child:
    """Runs models, one after the other; starts anew after a crash."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, model: bytes, feeds: dict[str, Any], *, provider: bool, ops: bool = True) -> list[Any] | str:
        """The outputs, or the text of the error.

        Raises:
            CrashError: With the exit status.
        """
        if self._process is None:
            command = [sys.executable, str(Path(__file__))]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            pickle.dump((model, feeds, provider, ops), self._process.stdin)
            self._process.stdin.flush()
            return pickle.load(self._process.stdout)
        except (BrokenPipeError, EOFError):
            status = self._process.wait()
            self._process = None
            raise CrashError(f"exit status {status}") from None

    def close(self) -> None:
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()


def _serve() -> None:
    import onnxruntime as ort
    from onnxpress import custom_ops, ep

    while True:
        try:
            model, feeds, provider, ops = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")  # so that results compare
        if ops:
            custom_ops.register(options)
        if provider:
            ep.append(options, claim=_FAMILIES)
        answer: list[Any] | str
        try:
            answer = ort.InferenceSession(model, options, enable_fallback=0).run(None, feeds)
        except Exception as error:
            answer = str(error) or type(error).__name__
        pickle.dump(answer, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
