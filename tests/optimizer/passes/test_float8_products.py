"""Products of FLOAT8 that an older ONNX Runtime refuses: the conversion warns, and the error says what helps."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress.optimizer import optimize
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.errors import OnnxpressError
from onnxpress.optimizer.runtime.session import open_session, session_options
from onnxpress.optimizer.settings.recipe import Recipe
from sessions import RUNS_FLOAT8_PRODUCTS

VERSION = tuple(map(int, ort.__version__.split(".")[:2]))
X = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)


def model(kind: str) -> ir.Model:
    b = graphs.Builder(21)
    x = b.input("x", [4, 64])
    if kind == "scores":
        y = b.op("MatMul", x, b.op("Transpose", x, perm=[1, 0]), name="product")
    elif kind == "Conv":
        image = b.op("Reshape", x, b.constant("image", np.array([1, 64, 2, 2])))
        y = b.op("Conv", image, b.constant("W", graphs.weight(64, 64).reshape(64, 64, 1, 1)), name="product")
    else:
        bias = [b.constant("b", np.ones(48, np.float32))] if kind == "Gemm with a bias" else []
        y = b.op(kind.split()[0], x, b.constant("W", graphs.weight(64, 48)), *bias, name="product")
    b.output(y, {"scores": [4, 4], "Conv": [1, 64, 2, 2]}.get(kind, [4, 48]))
    return b.model()


@pytest.mark.parametrize(
    ("kind", "formats", "named"),
    [
        ("MatMul", ("e4m3", "e4m3"), "1 MatMul"), ("MatMul", ("e5m2", "e4m3"), "1 MatMul"),
        ("scores", ("e5m2", "e4m3"), "1 MatMul"), ("Gemm", ("e4m3", "e5m2"), "1 Gemm"),
        ("Gemm with a bias", ("e4m3", "e4m3"), None), ("Conv", ("e4m3", "e4m3"), None),
        ("MatMul", ("e3m4", "e4m3"), None), ("MatMul", ("e4m3", "e3m4"), None),
    ],
)  # fmt: skip
def test_dynamic(kind, formats, named, tmp_path):
    activations, weights = formats
    recipe = Recipe(
        scheme="fp8-dynamic", activation_format=activations, weight_format=weights, first_and_last=True
    )  # fmt: skip
    report = optimize(model(kind), recipe, tmp_path / "m.onnx")
    assert sum(report.rewritten.values()) == 1
    warning = f"ONNX Runtime before 1.32 refuses {named} of FLOAT8 unless the session has the entry "
    refused = named and ((1, 28) if kind == "Gemm" else (1, 32)) > VERSION
    first, *others = [*report.warnings, ""]
    assert first == (warning + "session.disable_quant_qdq=1" if named else "")
    assert [other.startswith("the result does not run here") for other in others if other] == [True] * bool(refused)
    if refused:
        with pytest.raises(OnnxpressError, match=r"use ONNX Runtime 1\.32 or newer, or the session entry session\.dis"):
            open_session(tmp_path / "m.onnx", session_options())
    else:
        open_session(tmp_path / "m.onnx", session_options()).run(None, {"x": X})
    open_session(tmp_path / "m.onnx", session_options(config={"session.disable_quant_qdq": "1"})).run(None, {"x": X})


@pytest.mark.skipif(not RUNS_FLOAT8_PRODUCTS, reason="ONNX Runtime before 1.32 refuses products of FLOAT8")
def test_static():
    report = optimize(model("MatMul"), Recipe(scheme="fp8-static"), calibration=Calibration([{"x": X}]))
    assert any("refuses 1 MatMul of FLOAT8" in warning for warning in report.warnings)


@pytest.mark.parametrize("scheme", ["fp8", "fp8-e5m2", "mxfp8"])
@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
def test_weights_alone_are_of_no_concern(scheme, kind, tmp_path):
    report = optimize(model(kind), Recipe(scheme=scheme, form="qdq"), tmp_path / "m.onnx")
    assert not report.warnings
    open_session(tmp_path / "m.onnx", session_options()).run(None, {"x": X})
