"""Real models, converted, checked against direct rounding and judged by their tasks."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress import custom_ops, models
from onnxpress.custom_ops import reference
from onnxpress.models.calibration_data import calibration
from onnxpress.models.catalogue import SIMILARITY_DATA
from onnxpress.models.fetch import provide
from onnxpress.models.tasks import reading, similarity
from onnxpress.optimizer import Calibration, OnnxpressError, Recipe, optimize
from onnxpress.optimizer.analysis.evaluate import evaluate
from scores import float_score, float_short_lee, short_lee

pytestmark = pytest.mark.real


def converted(name, tmp_path, **values):
    path = tmp_path / "out.onnx"
    report = optimize(name, Recipe(**values), path)
    return path, report


def lee_vectors(path):
    """Embeddings of the beginnings of the Lee documents, of length one."""
    texts = (provide(SIMILARITY_DATA) / "lee.cor").read_text(encoding="latin-1")
    options = ort.SessionOptions()
    custom_ops.register(options)
    return similarity.Embedder(ort.InferenceSession(path, options), path, most_tokens=48)(texts.splitlines())


@functools.cache
def float_vectors():
    return lee_vectors(models.path("minilm"))


def distance(path):
    """Of embeddings from those in float: 1 - cosine, in the mean."""
    return 1 - (lee_vectors(path) * float_vectors()).sum(axis=1).mean()


@functools.cache
def distance_without_search(scheme):
    """In whatever form: they round alike."""
    form = "onnxpress" if scheme == "int2" else "qoperator"
    with tempfile.TemporaryDirectory() as folder:
        return distance(converted("minilm", Path(folder), scheme=scheme, form=form, search=False, check=False)[0])


# Change of the Pearson correlation on the Lee documents. Below 5 bits 50 documents tell less than the vectors do.
@pytest.mark.parametrize(
    ("scheme", "form", "bound"),
    [
        ("int8", "qoperator", 0.002),
        ("int6", "qoperator", 0.01),
        ("int5", "qoperator", 0.01),
    ],
)
def test_minilm_still_agrees_with_people(scheme, form, bound, tmp_path):
    path, report = converted("minilm", tmp_path, scheme=scheme, form=form)
    assert report.rewritten == {"MatMul": 36}
    assert report.gain > 0.1 or scheme == "int8"
    assert short_lee(path) == pytest.approx(float_short_lee(), abs=bound)


@pytest.mark.parametrize(
    ("scheme", "form"),
    [
        ("int4", "qoperator"), ("int4", "qdq"), ("int4", "onnxpress"), ("int3", "qoperator"), ("nf4", "qoperator"),
        ("fp4", "qoperator"), ("int2", "onnxpress"),
    ],
)  # fmt: skip
def test_the_search_brings_the_vectors_of_minilm_nearer(scheme, form, tmp_path):
    path, report = converted("minilm", tmp_path, scheme=scheme, form=form)
    assert report.rewritten == {"MatMul": 36}
    assert distance(path) < distance_without_search(scheme)


def test_minilm_with_its_embeddings(tmp_path):
    plain = distance(converted("minilm", tmp_path)[0])
    path, report = converted("minilm", tmp_path, embeddings=True)
    assert report.rewritten == {"MatMul": 36, "Gather": 1}
    assert report.size_after < report.size_before / 5
    assert distance(path) < 1.5 * plain


def test_recogniser_still_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_LINES", 80)
    path, _ = converted("ppocr-rec", tmp_path)
    assert evaluate(path).value == pytest.approx(float_score("ppocr-rec").value, abs=0.013)  # a line is 0.0125


@pytest.mark.parametrize("name", ["ppocr-det", "silero-vad"])
def test_models_without_products_are_refused_with_the_reasons(name, tmp_path):
    with pytest.raises(OnnxpressError, match=r"nothing to quantize.*Conv"):
        converted(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["qoperator", "onnxpress"])
def test_float32_compute_equals_the_dequantized_model(form, tmp_path):
    """At accuracy level 0 the converted model is the float model with each weight rounded, fused or not."""
    settings = {"form": form, "accuracy_level": 0, "check": False}
    path, fused = tmp_path / "plain.onnx", tmp_path / "fused.onnx"
    optimize("minilm", Recipe(fuse=False, **settings), path)
    optimize("minilm", Recipe(**settings), fused)
    model = ir.load(models.path("minilm"))
    nodes = {node.name: node for node in onnx.load(path).graph.node if node.op_type == "MatMulNBits"}
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    for node in model.graph:
        if node.name not in nodes:
            continue
        low = nodes[node.name]
        attributes = {a.name: a.i for a in low.attribute}
        rounded = reference.dequantize(
            *(arrays[name] for name in low.input[1:4]),
            bits=attributes["bits"], block_size=attributes["block_size"], K=attributes["K"],
        )  # fmt: skip
        weight = node.inputs[1]
        weight.const_value = ir.tensor(rounded, name=weight.name)
    direct = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    options = ort.SessionOptions()
    custom_ops.register(options)
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 20000, (2, 17))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    (want,) = direct.run(None, feeds)
    for each in (path, fused):
        (got,) = ort.InferenceSession(each, options).run(None, feeds)
        np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())


def test_products_of_low_rank_bring_the_vectors_of_minilm_nearer(tmp_path):
    some = {"scheme": "int2", "block_size": 128, "include": ("/encoder/layer.0/attention/*",), "method": "rtn"}
    plain = distance(converted("minilm", tmp_path, check=False, **some)[0])
    recipe, data = Recipe(check=False, rank=64, **some), Calibration(list(calibration("minilm", 8)))
    report = optimize(models.path("minilm"), recipe, tmp_path / "out.onnx", calibration=data)
    compensated = report.details["compensated"].values()
    assert len(compensated) == 4
    assert all(each["after"] < 0.8 * each["before"] for each in compensated)
    assert distance(tmp_path / "out.onnx") < 0.8 * plain
