"""Real models with weights of small floats: judged by their tasks, and checked against their decoded weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress import models
from onnxpress.custom_ops import reference
from onnxpress.models.tasks import reading
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.analysis.evaluate import evaluate
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.graph.rewriting import add_array
from onnxpress.optimizer.runtime.session import open_session, session_options
from onnxpress.optimizer.settings.recipe import Override
from scores import float_score, float_short_lee, short_lee

pytestmark = pytest.mark.real


@pytest.mark.parametrize(
    ("scheme", "form", "size", "bound"),
    [
        ("fp8", "qdq", 59e6, 0.005), ("fp6", "qoperator", 56.2e6, 0.01),
        ("nf4", "qoperator", 54e6, 0.015), ("mxfp4", "qoperator", 53.8e6, 0.015), ("bfp4", "qoperator", 54e6, 0.02),
    ],
)  # fmt: skip
def test_minilm_still_agrees_with_people(scheme, form, size, bound, tmp_path):
    path = tmp_path / "out.onnx"
    report = optimize("minilm", Recipe(scheme=scheme, form=form, accuracy_level=0), path)
    assert report.rewritten == {"MatMul": 36}
    assert report.schemes == {scheme: 36}
    assert report.size_after < size
    assert report.gain > 0.1
    assert short_lee(path) == pytest.approx(float_short_lee(), abs=bound)


@pytest.mark.parametrize("scheme", ["fp8-e3m4", "fp4"])
def test_the_model_is_that_of_its_decoded_weights(scheme, tmp_path):
    path = tmp_path / "out.onnx"
    optimize("minilm", Recipe(scheme=scheme, accuracy_level=0), path)
    proto, model = onnx.load(path), ir.load(models.path("minilm"))
    nodes = {node.name: node for node in proto.graph.node if node.op_type == "MatMulMiniFloat"}
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    for node in model.graph:
        if node.name not in nodes:
            continue
        given = {a.name: onnx.helper.get_attribute_value(a) for a in nodes[node.name].attribute}
        weight = reference.dequantize_minifloat(
            *(arrays[name] for name in nodes[node.name].input[1:3]),
            format=given["format"].decode(), block_size=given["block_size"], K=given["K"],
        )  # fmt: skip
        node.inputs[1].const_value = ir.tensor(weight, name=node.inputs[1].name)
    ids = np.random.default_rng(0).integers(1000, 20000, (2, 17))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    (want,) = ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, feeds)
    alone = not ort.__version__.startswith("1.23.")  # which takes one overload for all
    for ours in (False, True) if alone else (True,):
        (got,) = open_session(path, session_options(ours=ours)).run(None, feeds)
        np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())


@pytest.mark.parametrize(("name", "taken", "scheme"), [
    ("ppocr-rec", 32, "fp8"), ("ppocr-rec", 32, "fp6-e3m2"), ("ppocr-rec", 32, "mxfp4"),
    ("efficientnet-lite0", 45, "fp6-e3m2"), ("ppocr-det", 45, "mxfp4"),
])  # fmt: skip
def test_networks_of_convolutions(name, taken, scheme, tmp_path):
    """They compute what the float model computes of the decoded weights, constant once the model is loaded."""
    path, optimized = tmp_path / "out.onnx", tmp_path / "optimized.onnx"
    products = tuple(Override(op_type=each, keep_float=True) for each in ("MatMul", "Gemm"))
    report = optimize(name, Recipe(scheme=scheme, clean_up=False, overrides=products), path)
    assert report.rewritten["Conv"] == taken
    proto, model = onnx.load(path), ir.load(models.path(name))
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    weights = {}
    for node in proto.graph.node:
        if node.op_type == "DequantizeMiniFloat":
            given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            given["format"] = given["format"].decode()
            weights[node.output[0]] = reference.dequantize_minifloat_tensor(*map(arrays.get, node.input), **given)
    readers = {n.name: weights[n.input[1]] for n in proto.graph.node if len(n.input) > 1 and n.input[1] in weights}
    for node in model.graph:
        if node.name in readers:
            node.replace_input_with(1, add_array(model.graph, f"{node.name}_rounded", readers[node.name]))
    options = session_options()
    options.optimized_model_filepath = str(optimized)
    sessions = open_session(ir.to_proto(model).SerializeToString(), session_options()), open_session(path, options)
    kinds = {node.op_type for node in onnx.load(optimized).graph.node}
    assert kinds & {"Conv", "FusedConv"}
    assert not kinds & {"DequantizeMiniFloat", "BitShift", "Mod"}
    size = {"ppocr-rec": (48, 320), "ppocr-det": (160, 192), "efficientnet-lite0": (224, 224)}[name]
    image = np.random.default_rng(3).random((1, 3, *size), np.float32)
    want, got = (each.run(None, {each.get_inputs()[0].name: image})[0] for each in sessions)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_convolutions_still_read(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_LINES", 80)
    path = tmp_path / "out.onnx"
    report = optimize("ppocr-rec", Recipe(scheme="fp8-e3m4"), path)
    assert report.rewritten == {"Conv": 32, "MatMul": 9}
    assert report.size_before > 3.5 * report.size_after
    assert evaluate(path).value == pytest.approx(float_score("ppocr-rec").value, abs=0.013)  # a line is 0.0125


SAMPLES = 8


@pytest.mark.parametrize(("data", "least"), [(False, 0.9), (True, 0.97)])
def test_four_bits_read_lines_without_data_and_more_with_it(data, least, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_LINES", 80)
    path = tmp_path / "rec.onnx"
    given = Calibration(samples=SAMPLES) if data else None
    report = optimize("ppocr-rec", Recipe(scheme="nf4", method="gptq" if data else None), path, calibration=given)
    assert report.details.get("samples") == (SAMPLES if data else None)
    assert evaluate(path).value >= least
