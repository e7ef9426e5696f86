"""Small models as files hold them, and that all schemes convert them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxpress.optimizer import Calibration, Recipe, optimize
from onnxpress.optimizer.analysis.inspect import inspect
from schemes import ROUNDING
from sessions import runnable

SCHEMES = ("int8", "fp8", *(scheme for scheme in ROUNDING if scheme != "sparse"))  # which loses more
node = helper.make_node


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


X = {"x": noise(2, 32)}
WEIGHT = numpy_helper.from_array(noise(32, 32) / 6, "W")


def info(name: str, shape=None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(nodes, *, inputs=None, outputs=None, constants=(WEIGHT,), opsets=(("", 17),), ir_version=8, **more):
    graph = helper.make_graph(
        nodes, "g", inputs or [info("x", ["N", 32])], outputs or [info("y", None)], list(constants),
        value_info=more.pop("value_info", []),
    )  # fmt: skip
    imports = [helper.make_opsetid(*entry) for entry in opsets]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, **more)


def run(model, feeds) -> list:
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(source, options, ["CPUExecutionProvider"]).run(None, feeds)


def check(model: onnx.ModelProto, feeds, folder, schemes=SCHEMES) -> onnx.ModelProto:
    """Every scheme that runs here makes of it what ONNX Runtime loads, with outputs near the old ones; the last one."""
    want = run(model, feeds)
    source, target = folder / "m.onnx", folder / "o.onnx"
    onnx.save(model, source)
    for scheme in runnable(*schemes):
        data = Calibration([feeds]) if scheme.endswith("static") else None
        assert optimize(source, Recipe(scheme=scheme), target, calibration=data).rewritten
        for a, b in zip(want, run(target, feeds), strict=True):
            if isinstance(a, np.ndarray):
                assert (a.shape, a.dtype) == (b.shape, b.dtype)
            if isinstance(a, np.ndarray) and a.dtype == np.float32:
                assert np.abs(a - b).max() < 0.25 * np.abs(a).max()
    inspect(source)
    return onnx.load(target)


PRODUCT = node("MatMul", ["h", "W"], ["y"], name="product")
RELU = node("Relu", ["x"], ["h"], name="first")
