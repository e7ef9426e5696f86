"""The process behind `session_process`: requests come by standard input, answers leave by standard output."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import types
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ..errors import OnnxpressError
from ..runtime.session import open_session, session_options


class Server:
    """One session at a time, and the weights that it is fed with."""

    def __init__(self, requests: IO[bytes]) -> None:
        self._requests = requests
        self._session: Any = None
        self._weights: dict[str, npt.NDArray[Any]] = {}
        self._held: dict[int, npt.NDArray[Any]] = {}

    def open(
        self,
        model: str | bytes,
        name: str,
        ours: bool,
        optimized: bool,
        weights: Sequence[tuple[str, int, Any, tuple[int, ...], tuple[str, int] | None]],
    ) -> tuple[list[Any], list[str], list[str]]:
        """Load a model.

        Args:
            model: A path, or a serialized model.
            name: What to call it in an error.
            ours: Whether it has operators of ours.
            optimized: Whether ONNX Runtime may rewrite it.
            weights: Name, number, type and shape of each, and the file and byte where it begins. Others follow the
                request, byte by byte, but for those of a number that came before.

        Returns:
            Its inputs that are no weights, names of its outputs, and of the initializers that are inputs.

        Raises:
            OnnxpressError: ONNX Runtime refuses it.
        """
        import onnxruntime as ort

        self._session = None  # or its memory stays until the next one is there
        before, self._held = self._held, {}
        for _, number, *place in weights:
            if number not in self._held:  # several may be of one tensor, which comes once
                self._held[number] = before[number] if number in before else self._array(*place)
        del before
        self._weights = {key: self._held[number] for key, number, *_ in weights}
        options = session_options(ours=ours, config={"session.intra_op.allow_spinning": "0"})  # it runs once or twice
        options.enable_cpu_mem_arena = False
        if not optimized:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = open_session(model, options, name)
        inputs = [
            types.SimpleNamespace(name=entry.name, type=entry.type, shape=entry.shape)
            for entry in self._session.get_inputs()
            if entry.name not in self._weights
        ]
        others = [entry.name for entry in self._session.get_overridable_initializers()]
        return inputs, [entry.name for entry in self._session.get_outputs()], others

    def close(self) -> None:
        """Forget the model and its weights, and give their memory back."""
        self._session, self._weights, self._held = None, {}, {}
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # else freed memory stays with this process
            libc.malloc_trim(0)

    def run(self, names: Sequence[str], feeds: dict[str, Any]) -> list[Any]:
        """The outputs of these names.

        Raises:
            OnnxpressError: ONNX Runtime fails.
        """
        try:
            outputs: list[Any] = self._session.run(names, {**feeds, **self._weights})
        except Exception as error:  # ONNX Runtime raises a type for each of its status codes
            raise OnnxpressError(f"ONNX Runtime cannot run it: {' '.join(str(error).split())[:300]}") from error
        return outputs

    def _array(self, dtype: Any, shape: tuple[int, ...], place: tuple[str, int] | None) -> npt.NDArray[Any]:
        if place is not None:
            return np.require(np.memmap(place[0], dtype, "r", place[1], shape), requirements=["C", "ALIGNED"])
        array = np.empty(shape, dtype)
        view = array.reshape(-1).view(np.uint8).data
        while len(view) > 0:
            if (count := self._requests.readinto(view)) == 0:  # type: ignore[attr-defined]
                raise EOFError
            view = view[count:]
        return array


def main() -> None:
    """Serve until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for who asks
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    server = Server(requests)
    try:
        while True:
            method, *arguments = pickle.load(requests)
            answer: tuple[bool, Any]
            try:
                answer = True, getattr(server, method)(*arguments)
            except OnnxpressError as error:
                answer = False, str(error)
            pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
    except (EOFError, BrokenPipeError):
        return
