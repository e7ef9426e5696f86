"""What runs models: ONNX Runtime, and ONNX's reference as a second judge."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator
from onnxpress.custom_ops import register

from .case import Feeds

LEVELS = {"none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL, "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL}
_DOUBTED = {  # operators that the reference computes otherwise than the specification has it, and up to which opset
    "BatchNormalization": 13, "Hardmax": 12, "LogSoftmax": 12, "Softmax": 12,  # means of the batch; all axes behind one
    "AveragePool": 99, "LpPool": 99, "MaxPool": 99,  # the window of auto_pad where it is dilated or rounded up
    "Conv": 99, "ConvTranspose": 99,  # pads of auto_pad; groups, pads of the output
    "LRN": 99, "Resize": 99,  # the window of channels; the nearest of two
}  # fmt: skip

Outputs = list[np.ndarray]


class Model:
    """A model in ONNX Runtime, of which each level of optimization is loaded once."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.proto = model
        self._sessions: dict[str, ort.InferenceSession | str] = {}

    def run(self, feeds: Feeds, level: str) -> Outputs | str:
        """Outputs, or the error of ONNX Runtime."""
        if level not in self._sessions:
            self._sessions[level] = self._load(level)
        session = self._sessions[level]
        if isinstance(session, str):
            return session
        try:
            return session.run(None, feeds)
        except Exception as error:  # a type for each of its status codes
            return _line(error)

    def refer(self, feeds: Feeds) -> Outputs | str:
        """What ONNX's reference makes of it, or why it is no judge of it."""
        opset = next(entry.version for entry in self.proto.opset_import if entry.domain == "")
        if doubted := sorted(kind for kind in _operators(self.proto.graph) if opset <= _DOUBTED.get(kind, 0)):
            return f"the reference is not trusted with {', '.join(doubted)}"
        try:
            with np.errstate(all="ignore"):
                return [np.asarray(array) for array in ReferenceEvaluator(self.proto).run(None, feeds)]
        except Exception as error:  # whatever its operators raise
            return _line(error)

    def _load(self, level: str) -> ort.InferenceSession | str:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.graph_optimization_level = LEVELS[level]
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # or it rounds activations
        if any(entry.domain == "onnxpress" for entry in self.proto.opset_import):
            register(options)
        try:
            return ort.InferenceSession(self.proto.SerializeToString(), options, ["CPUExecutionProvider"])
        except Exception as error:
            return _line(error)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _operators(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _operators(inner)
