"""Decoders are fused by the schemes that round no ranges, in the file and in the report."""

from __future__ import annotations

import json

import graphs
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from command_line import runner
from decoder_layers import VOCABULARY, Decoder, feeds
from encoders import Encoder
from onnxpress.optimizer import Recipe, optimize
from sessions import options

FORM = {"layers": 2, "bias": True}


def counts(path):
    found: dict[str, int] = {}
    for node in onnx.load(path).graph.node:
        found[node.op_type] = found.get(node.op_type, 0) + 1
    return found


def run(path, fed):
    return ort.InferenceSession(str(path), options()).run(None, fed)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("decoder") / "model.onnx"
    ir.save(Decoder(**FORM).made, path)
    return path


def test_float_is_the_same(source, tmp_path):
    report = optimize(source, Recipe(scheme="float"), tmp_path / "out.onnx")
    assert report.rewritten == {"Softmax": 2}
    assert report.details["cached_attention"] == {"fused": 2, "left": {}}
    assert report.details["merged_products"] == {"made": 4, "of": 10}
    assert ("decoder", "2 attentions fused with their past") in report.rows
    assert not report.warnings
    found = counts(tmp_path / "out.onnx")
    assert (found["GroupQueryAttention"], found["RotaryEmbedding"], found["SimplifiedLayerNormalization"]) == (2, 4, 5)
    assert found["MatMul"] == 9  # four products a layer and the logits
    fed = feeds(ir.load(source), 2, 5, 0, [0, 2])
    real = fed["attention_mask"].astype(bool)
    want, got = run(source, fed)[0][real], run(tmp_path / "out.onnx", fed)[0][real]
    assert (want * got).sum() / np.linalg.norm(want) / np.linalg.norm(got) > 0.99999
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_int4_rounds_what_it_rounds_without(source, tmp_path):
    recipe = {"scheme": "int4", "accuracy_level": 0}
    plain = optimize(source, Recipe(fuse=False, **recipe), tmp_path / "plain.onnx")
    fused = optimize(source, Recipe(**recipe), tmp_path / "fused.onnx")
    assert "GroupQueryAttention" not in counts(tmp_path / "plain.onnx")
    assert counts(tmp_path / "fused.onnx")["GroupQueryAttention"] == 2
    assert counts(tmp_path / "fused.onnx")["MatMulNBits"] == 9
    assert [(each.name, each.sqnr) for each in fused.weights] == [(each.name, each.sqnr) for each in plain.weights]
    assert [node for node in fused.nodes if node.taken] == [node for node in plain.nodes if node.taken]
    assert plain.left["MatMul: no constant weight"] == 4  # which the attentions have
    assert "MatMul: no constant weight" not in fused.left
    fed = feeds(ir.load(source), 1, 6, 3, [0])
    for want, got in zip(run(tmp_path / "plain.onnx", fed), run(tmp_path / "fused.onnx", fed), strict=True):
        np.testing.assert_allclose(got, want, atol=5e-5)


def test_int8_dynamic_is_fused_too(source, tmp_path):
    optimize(source, Recipe(scheme="int8-dynamic"), tmp_path / "out.onnx")
    assert counts(tmp_path / "out.onnx")["GroupQueryAttention"] == 2
    assert "Softmax" not in counts(tmp_path / "out.onnx")
    fed = feeds(ir.load(source), 1, 6, 3, [0])
    want, got = run(source, fed)[0], run(tmp_path / "out.onnx", fed)[0]
    assert (want * got).sum() / np.linalg.norm(want) / np.linalg.norm(got) > 0.97


def test_last_logits(source, tmp_path):
    report = optimize(source, Recipe(scheme="float", last_logits=True), tmp_path / "out.onnx")
    assert ("logits", "of the last token alone") in report.rows
    assert all(output.sqnr > 90 for output in report.outputs)
    fed = feeds(ir.load(source), 2, 5, 0, [0, 2])
    got = run(tmp_path / "out.onnx", fed)[0]
    assert got.shape == (2, 1, VOCABULARY)
    np.testing.assert_allclose(got, run(source, fed)[0][:, -1:], atol=2e-5)
    report = optimize(graphs.matmul_model(), Recipe(scheme="int4", last_logits=True), tmp_path / "other.onnx")
    assert report.warnings == (
        "last_logits: the model has no logits [batch, sequence, vocabulary] that a product gives",
    )


def test_what_is_left_is_told(monkeypatch, capsys, tmp_path):
    ir.save(Decoder(mask="future").made, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    code, out, _ = runner(monkeypatch, capsys)("optimize", "model.onnx", "--scheme", "int4", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["details"]["cached_attention"] == {
        "fused": 0, "left": {"attention: queries see keys behind them": 1}
    }  # fmt: skip
    assert told["passes"]["FuseCachedAttention"] == {"0/softmax": "queries see keys behind them"}


def test_float_fuses_encoders_and_cleans_up_anything(tmp_path):
    report = optimize(Encoder().model, Recipe(scheme="float"), tmp_path / "encoder.onnx")
    assert report.rewritten == {"Softmax": 1}
    assert counts(tmp_path / "encoder.onnx")["Attention"] == 1
    kept = optimize(Encoder().model, Recipe(scheme="float", exclude=("softmax",)), tmp_path / "kept.onnx")
    assert (kept.rewritten, kept.left) == ({}, {"Softmax: excluded by the recipe": 1})
    assert "Attention" not in counts(tmp_path / "kept.onnx")
    report = optimize(graphs.matmul_model(), Recipe(scheme="float"), tmp_path / "product.onnx")
    assert (report.rewritten, report.left) == ({}, {})
    assert counts(tmp_path / "product.onnx") == {"MatMul": 1}


def test_a_fused_model_is_quantized_like_any_other(source, tmp_path):
    optimize(source, Recipe(scheme="float"), tmp_path / "float.onnx")
    report = optimize(tmp_path / "float.onnx", Recipe(scheme="int8", accuracy_level=0), tmp_path / "int8.onnx")
    assert report.rewritten == {"MatMul": 9}
    fed = feeds(ir.load(source), 1, 6, 3, [0])
    want, got = run(source, fed)[0], run(tmp_path / "int8.onnx", fed)[0]
    assert (want * got).sum() / np.linalg.norm(want) / np.linalg.norm(got) > 0.99
