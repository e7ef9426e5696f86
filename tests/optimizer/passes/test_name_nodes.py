"""Models whose nodes have no names."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from graphs import Builder
from onnx import parser
from onnxpress.optimizer.analysis.inspect import inspect
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.conversion.calibrate import calibrate
from onnxpress.optimizer.conversion.pipeline import optimize
from onnxpress.optimizer.passes.name_nodes import NameNodes
from onnxpress.optimizer.settings.recipe import Recipe
from schemes import ROUNDING


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def samples() -> list[dict[str, np.ndarray]]:
    return [{"x": noise(2, 32, seed=i)} for i in range(4)]


@pytest.fixture
def path(tmp_path):
    """Three MatMuls with biases, each with a Relu."""
    b = Builder(17)
    y = b.input("x", ["batch", 32])
    for i in range(3):
        y = b.op("MatMul", y, b.constant(f"w{i}", noise(32, 32, seed=i) / 6), name=f"fc{i}")
        y = b.op("Relu", b.op("Add", y, b.constant(f"b{i}", noise(32, seed=i)), name=f"bias{i}"), name=f"relu{i}")
    b.output(y, ["batch", 32])
    proto = ir.to_proto(b.model())
    for node in proto.graph.node:
        node.ClearField("name")
    onnx.save(proto, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def outputs(path) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0] for feed in samples()])


@pytest.mark.parametrize("clean_up", [True, False])
@pytest.mark.parametrize("scheme", ROUNDING)
def test_every_scheme_converts_them(path, scheme, clean_up):
    data = Calibration(samples()) if scheme.endswith("static") else None
    some = {"sparsity": 0.1} if scheme == "sparse" else {}
    report = optimize(path, Recipe(scheme=scheme, clean_up=clean_up, **some), calibration=data)
    assert report.rewritten == {"MatMul": 3}
    names = [node.name for node in onnx.load(report.output).graph.node]
    assert len(names) == len(set(names))
    if scheme != "sparse":
        a, b = outputs(path), outputs(report.output)
        assert np.square(a - b).sum() < 0.05 * np.square(a).sum()


def test_patterns_and_measurements_tell_them_apart(path):
    report = optimize(path, Recipe(scheme="int8-static", exclude=("fc0_out",)), calibration=Calibration(samples()))
    assert (report.rewritten, report.warnings) == ({"MatMul": 2}, ())
    report = optimize(path, Recipe(scheme="int8-static", max_drop=1e-9), calibration=Calibration(samples()))
    kept = report.details["mixed_precision"]["kept"]
    assert kept
    assert set(kept) < {"fc0_out", "fc1_out", "fc2_out"}
    assert report.rewritten == {"MatMul": 3 - len(kept)}


def test_inspect_and_statistics_know_the_same_names(path, tmp_path):
    taken = inspect(path, Recipe(scheme="int8-static")).taken
    assert [row[:2] for row in taken if row[1] == "MatMul"] == [(f"fc{i}_out", "MatMul") for i in range(3)]
    calibrate(path, samples(), tmp_path / "s.npz")
    report = optimize(path, Recipe(scheme="int8-static"), calibration=Calibration(statistics=tmp_path / "s.npz"))
    assert report.rewritten == {"MatMul": 3}


def test_names_that_are_taken_and_functions():
    proto = parser.parse_model("""<ir_version: 9, opset_import: ["": 17, "own": 1]>
        g (float[4,4] x) => (float[4,4] y) { [b] a = own.f(x)  b = Relu(a)  y = Tanh(b) }
        <domain: "own", opset_import: ["": 17]> f (x) => (b) { a = Neg(x)  [kept] b = Relu(a) }""")
    model = ir.from_proto(proto)
    assert NameNodes()(model)
    assert [node.name for node in model.graph] == ["b", "b_1", "y"]
    assert [node.name for function in model.functions.values() for node in function] == ["a", "kept"]
    assert not NameNodes()(model)
