"""OpenVINO beside ONNX Runtime: what runs without it, and its numbers where it is installed."""

from __future__ import annotations

import sys

import graphs
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress.optimizer import Calibration, Recipe, optimize
from onnxpress.optimizer.analysis.bench import bench
from onnxpress.optimizer.analysis.openvino import OpenVinoSession, quantize
from onnxpress.optimizer.commands.peers import nncf_data
from onnxpress.optimizer.errors import OnnxpressError, UsageError

X = {"x": np.random.default_rng(3).normal(size=(3, 64)).astype(np.float32)}


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "a.onnx"
    made = graphs.matmul_model(bias=True)
    made.metadata_props["character"] = "ab"
    ir.save(made, path)
    return path


def test_a_missing_openvino_is_named(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)  # importing it fails
    with pytest.raises(
        UsageError, match=r'this comparison needs the package openvino: pip install "onnxpress\[peers\]"'
    ):
        bench([str(model)], dims={}, threads=1, rounds=1, openvino=True)


def test_a_missing_nncf_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", ir)  # any module will do: it is not used before nncf is there
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(UsageError, match=r'this comparison needs the package nncf: pip install "onnxpress\[peers\]"'):
        quantize(model, Calibration([X]), tmp_path)


def test_options_of_nncf_need_it():
    assert nncf_data(False, None, None, None, None) is None
    assert nncf_data(True, "a.npz", 3, None, None) == Calibration("a.npz", samples=3)
    with pytest.raises(UsageError, match="read by --nncf alone"):
        nncf_data(False, "a.npz", None, None, None)


def test_a_session_says_and_computes_what_onnx_runtimes_does(model):
    pytest.importorskip("openvino")
    theirs, stock = OpenVinoSession(model, threads=1), ort.InferenceSession(model)
    assert [(n.name, n.type, n.shape) for n in theirs.get_inputs()] == [("x", "tensor(float)", ["batch", 64])]
    assert [n.name for n in theirs.get_outputs()] == [n.name for n in stock.get_outputs()]
    assert theirs.get_outputs()[0].shape == [None, 48]
    assert theirs.get_modelmeta().custom_metadata_map["character"] == "ab"
    wanted = stock.run(None, X)[0]
    name = theirs.get_outputs()[0].name
    for found in (theirs.run(None, X)[0], theirs.run([name], X)[0]):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=64 * np.finfo(np.float32).eps * np.abs(wanted).max())


def test_bench_puts_openvino_beside_and_says_what_it_cannot_compile(model, tmp_path):
    pytest.importorskip("openvino")
    optimize(model, Recipe(), tmp_path / "b.onnx")  # MatMulNBits of ONNX Runtime's own domain
    result = bench([str(model), str(tmp_path / "b.onnx")], dims={"batch": 3}, threads=1, rounds=1, openvino=True)
    names = [t.model.removeprefix(str(tmp_path)) for t in result.timings]
    assert names[:3] == ["/a.onnx", "/a.onnx in OpenVINO", "/b.onnx"]
    assert len(names) + len(result.left) == 4
    assert "INFERENCE_PRECISION_HINT=f32" in result.setup


def test_an_unknown_operator_is_an_error_that_names_it(tmp_path):
    pytest.importorskip("openvino")
    b = graphs.Builder()
    b.output(b.op("NoSuchOp", b.input("x", [2]), domain="nobody"), [2])
    ir.save(b.model(), tmp_path / "a.onnx")
    with pytest.raises(OnnxpressError, match=r"a\.onnx: OpenVINO cannot compile the model: .*NoSuchOp"):
        OpenVinoSession(tmp_path / "a.onnx")


def test_nncf_rounds_the_first_model(model):
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    result = bench([str(model)], dims={"batch": 3}, threads=1, rounds=1, nncf=Calibration([X]))
    assert [t.model for t in result.timings] == [str(model), f"{model} by NNCF in OpenVINO"]
    assert result.left == []


def test_nncf_gets_no_statistics(model, tmp_path):
    pytest.importorskip("nncf")
    from onnxpress.optimizer.calibration import Statistics

    with pytest.raises(UsageError, match="NNCF has to see data"):
        quantize(model, Calibration(statistics=Statistics("", {})), tmp_path)
