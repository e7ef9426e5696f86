"""How far the outputs of a model are from those of the float model: one number, less is better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..errors import OnnxpressError
from ..runtime.feeds import Feeds, arrays_of, is_float
from ..runtime.temporary import temporary_session


class OutputNoise:
    """Noise over signal of each output, over all inputs together, and of that the mean over the outputs.

    Of an output that holds no floats it is the share of elements that differ.
    """

    def __init__(self, model: ir.Model, feeds: Sequence[Feeds]) -> None:
        """Run the float model.

        Raises:
            OnnxpressError: ONNX Runtime cannot load or run it.
        """
        self._feeds = feeds
        self._wanted = self._outputs(model)

    def __call__(self, model: ir.Model) -> float:
        """Of a model; infinite where an output has another shape or type, or holds NaN where the float model does not.

        Raises:
            OnnxpressError: ONNX Runtime cannot load or run it.
        """
        pairs = zip(zip(*self._wanted, strict=True), zip(*self._outputs(model), strict=True), strict=True)
        noises = [_noise(wanted, found) for wanted, found in pairs]
        return float(np.mean(noises)) if noises else 0.0

    def _outputs(self, model: ir.Model) -> list[list[npt.NDArray[Any]]]:
        """Of each set of inputs, the tensors of all outputs."""
        with temporary_session(model, model.graph.name or "model") as session:
            try:
                runs = [session.run(None, inputs) for inputs in self._feeds]
            except Exception as error:  # ONNX Runtime raises a type for each of its status codes
                raise OnnxpressError(f"ONNX Runtime cannot run it: {str(error).strip().splitlines()[0]}") from error
        return [[_joined(output) for output in outputs] for outputs in runs]


def _joined(output: object) -> npt.NDArray[Any]:
    arrays = arrays_of(output)
    return arrays[0] if len(arrays) == 1 else np.concatenate([np.zeros(0), *map(np.ravel, arrays)])


def _noise(wanted: Sequence[npt.NDArray[Any]], found: Sequence[npt.NDArray[Any]]) -> float:
    """Noise over signal of one output."""
    noise = signal = 0.0
    for a, b in zip(wanted, found, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return math.inf
        if not is_float(a.dtype):
            noise, signal = noise + float(np.sum(a != b)), signal + a.size
            continue
        usual = np.isfinite(a)
        exact, rounded = a[usual].astype(np.float64), b[usual].astype(np.float64)
        noise, signal = noise + float(np.square(rounded - exact).sum()), signal + float(np.square(exact).sum())
    if math.isnan(noise):
        return math.inf
    return noise / signal if signal > 0 else (math.inf if noise > 0 else 0.0)
