"""Sessions of ONNX Runtime in a process of their own.

A model that crashes ONNX Runtime ends that process alone, and so does what it takes of memory.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import fcntl
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx_ir as ir

from ..errors import OnnxpressError
from ..graph.constants import release
from ..runtime.feeds import Feeds

_START = f"import sys; sys.path[:] = sys.argv[1:]; from {__package__}.session_server import main; main()"
"""With the path of this process: it may have been changed, and no module may come from where the models are."""


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What a session says of its model.

    Attributes:
        inputs: Those that are not fed already: name, type and shape each.
        outputs: Names of its outputs.
        overridable: Names of the initializers that are inputs.
    """

    inputs: list[Any]
    outputs: list[str]
    overridable: list[str]


_SPARE_SECONDS = 5.0
_PIPE_BYTES = 1 << 20
"""That a pipe may hold, so that weights go through it in few turns of both processes."""

StartedBy = tuple[int, tuple[str, ...]]


class _Spare:
    """The process that nobody uses now, for who is next: it takes half a second of CPU to start one.

    There is one at most, and it ends after some seconds, and with this process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: tuple[StartedBy, subprocess.Popen[bytes], threading.Timer] | None = None

    def take(self) -> subprocess.Popen[bytes] | None:
        """The process, if there is one that this one started, with the path that modules come from now."""
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is None or kept[0][0] != os.getpid():
            return None
        started_by, process, timer = kept
        timer.cancel()
        if started_by == _started_by() and process.poll() is None:
            return process
        _end(process)
        return None

    def put(self, process: subprocess.Popen[bytes]) -> None:
        """Keep a process in place of the one before."""
        self.end()
        timer = threading.Timer(_SPARE_SECONDS, self.end)
        timer.daemon = True
        with self._lock:
            self._kept = _started_by(), process, timer
        atexit.register(self.end)
        timer.start()

    def end(self) -> None:
        """End the process, if there is one, and was not there before a fork."""
        atexit.unregister(self.end)
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is not None and kept[0][0] == os.getpid():
            kept[2].cancel()
            _end(kept[1])


_SPARE = _Spare()


def _started_by() -> StartedBy:
    """Which process starts another, and where modules come from in both."""
    return os.getpid(), tuple(sys.path)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # of what was not written
            pipe.close()  # type: ignore[union-attr]
    process.wait()


def start_early() -> None:
    """Start a process for who needs one in some seconds, without waiting, where the operating system can."""
    process = SessionProcess()
    with contextlib.suppress(OnnxpressError):  # which the run tells
        process.start()
    process.release()


def _widen(pipe: IO[bytes] | None) -> None:
    """Let a pipe hold more, where the operating system can."""
    if pipe is not None and hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):  # the user's pipes hold all that they may
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


class SessionProcess:
    """A process that holds one session at a time; it starts when it is needed, and anew where it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._sent: dict[int, ir.TensorProtocol] = {}
        self._is_asked = False

    @property
    def is_alive(self) -> bool:
        """Whether there is a process, and what it holds."""
        return self._process is not None

    def start(self) -> None:
        """Start, without waiting: it takes a quarter of a second.

        Raises:
            OnnxpressError: The operating system starts no process.
        """
        if self._process is None:
            self._process, self._is_asked = _SPARE.take(), False
        if self._process is not None:
            return
        command = [sys.executable, "-c", _START, *filter(None, sys.path)]
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        except OSError as error:
            raise OnnxpressError(f"no process can be started to run it: {error.strerror}") from error
        _widen(self._process.stdin)

    def open(
        self,
        model: bytes | Path,
        name: str,
        *,
        ours: bool,
        optimized: bool = True,
        weights: Mapping[str, ir.TensorProtocol] | None = None,
    ) -> Loaded:
        """Load a model, in place of the one before.

        Args:
            model: A path, or a serialized model.
            name: What to call it in an error.
            ours: Whether it has operators of ours.
            optimized: Whether ONNX Runtime may rewrite it.
            weights: What to feed its inputs of these names with in every run, of types that NumPy knows.

        Raises:
            OnnxpressError: ONNX Runtime refuses it, or dies.
        """
        self.start()
        told, bodies = [], []
        known, self._sent = self._sent, {}
        for key, tensor in (weights or {}).items():
            dtype, place = tensor.dtype.numpy(), None
            if isinstance(tensor, ir.ExternalTensor):
                place = str(Path(tensor.path).resolve()), tensor.offset or 0
            elif id(tensor) not in known and id(tensor) not in self._sent:
                bodies.append(tensor)
            self._sent[id(tensor)] = tensor
            told.append((key, id(tensor), dtype, tuple(tensor.shape.numpy()), place))
        source = model if isinstance(model, bytes) else str(model.resolve())
        return Loaded(*self._ask("open", source, name, ours, optimized, told, bodies=bodies))

    def run(self, names: Sequence[str], feeds: Feeds) -> list[Any]:
        """What the session gives for these names.

        Raises:
            OnnxpressError: ONNX Runtime fails, or dies.
        """
        outputs: list[Any] = self._ask("run", list(names), feeds)
        return outputs

    def release(self) -> None:
        """Free what the process holds; it waits some seconds for the next one who needs it."""
        if self._process is None:
            return
        try:
            if self._is_asked:
                self._ask("close")
        except OnnxpressError:  # it is dead
            return
        process, self._process, self._sent = self._process, None, {}
        _SPARE.put(process)

    def stop(self) -> None:
        """End the process, and free what it holds."""
        process, self._process, self._sent = self._process, None, {}
        if process is not None:
            _end(process)

    def _ask(self, *request: Any, bodies: Sequence[ir.TensorProtocol] = ()) -> Any:
        process, self._is_asked = self._process, True
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump(request, process.stdin, pickle.HIGHEST_PROTOCOL)
            for tensor in bodies:
                process.stdin.write(np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data)
                release(tensor)
            process.stdin.flush()
            done, answer = pickle.load(process.stdout)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError) as error:
            status = process.wait()
            self.stop()
            raise OnnxpressError(f"ONNX Runtime ended with {_shown(status)}") from error
        except BaseException:
            self.stop()  # in the middle of a request
            raise
        if not done:
            raise OnnxpressError(answer)
        return answer


def _shown(status: int) -> str:
    try:
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    except ValueError:  # one without a name
        return f"signal {-status}"
