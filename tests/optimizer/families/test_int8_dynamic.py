"""Dynamic INT8 on real models."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress import models
from onnxpress.custom_ops import register
from onnxpress.optimizer import Recipe
from onnxpress.optimizer.analysis.evaluate import evaluate
from onnxpress.optimizer.families import int8_dynamic as dynamic
from onnxpress.optimizer.model_io import storage
from onnxpress.optimizer.passes.clean_up import CleanUp
from onnxpress.optimizer.runtime import int8_kernels
from scores import float_score
from sessions import options

pytestmark = pytest.mark.real


@functools.cache
def converted(name, **values):
    model = ir.load(models.path(name))
    CleanUp()(model)
    outcome = dynamic.convert(model, Recipe(scheme="int8-dynamic", **values), None, lambda *_: None, "model")
    return model, outcome


def feeds(batch=3, sequence=40):
    rng = np.random.default_rng(1)
    ids = rng.integers(1000, 20000, (batch, sequence))
    mask = (np.arange(sequence) < np.array([[sequence], [sequence // 2], [3]])).astype(np.int64)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def embeddings(hidden, mask):
    total = (hidden * mask[:, :, None]).sum(axis=1)
    return total / np.linalg.norm(total, axis=1, keepdims=True)


@pytest.mark.parametrize("fuse", [True, False])
def test_minilm_gives_the_same_embeddings(fuse):
    model, outcome = converted("minilm", fuse=fuse)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    given = feeds()
    (want,) = ort.InferenceSession(models.path("minilm"), options()).run(None, given)
    want = embeddings(want, given["attention_mask"])
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        session = ort.InferenceSession(proto.SerializeToString(), options(graph_optimization_level=level))
        got = embeddings(session.run(None, given)[0], given["attention_mask"])
        assert ((got * want).sum(axis=1) > 0.985).all()
    assert outcome.details["attention"] == {"fused": 6 if fuse else 0, "left": {}}
    assert sum(d.taken for d in outcome.decisions) == 36
    assert len(outcome.weights()) == (24 if fuse else 36)


def test_minilm_as_whole_layers(tmp_path):
    """Beside the float model on real tokens, whatever else is in the batch."""
    model, outcome = converted("minilm", fuse_layers=True)
    assert outcome.details["layers"] == {"fused": 6, "left": {}}
    assert outcome.details["made_for"].startswith("any CPU")
    assert [node.op_type for node in model.graph].count("EncoderLayer") == 6
    storage.save(model, tmp_path / "out.onnx")
    assert len(outcome.weights()) == 24
    assert all(len(weight.nodes) == len(set(weight.nodes)) for weight in outcome.weights())
    given = feeds()
    (want,) = ort.InferenceSession(models.path("minilm"), options()).run(None, given)
    want = embeddings(want, given["attention_mask"])
    for ours in (True, False):
        chosen = options()
        if ours:
            register(chosen)
        session = ort.InferenceSession(str(tmp_path / "out.onnx"), chosen)
        got = embeddings(session.run(None, given)[0], given["attention_mask"])
        assert ((got * want).sum(axis=1) > 0.995).all()
        alone = {name: array[1:2, :20] for name, array in given.items()}
        again = embeddings(session.run(None, alone)[0], alone["attention_mask"])
        np.testing.assert_allclose(again[0], got[1], atol=1e-6)


@pytest.mark.parametrize("settings", [{"length_budget": 0.7}, {"lengths": "1,0.8,0.8,16,8"}], ids=str)
def test_minilm_with_fewer_tokens(settings, tmp_path):
    """With our kernels a text gives the same alone and beside others; what is lost is little of a short text."""
    model, outcome = converted("minilm", fuse_layers=True, **settings)
    assert outcome.details["layers"] == {"fused": 6, "left": {}}
    storage.save(model, tmp_path / "out.onnx")
    given, chosen = feeds(), options()
    register(chosen)
    session = ort.InferenceSession(str(tmp_path / "out.onnx"), chosen)
    (hidden,) = session.run(None, given)
    assert hidden.shape == (3, 40, 384)
    got = embeddings(hidden, given["attention_mask"])
    for row, length in enumerate((40, 20, 3)):
        alone = {name: array[row : row + 1, :length] for name, array in given.items()}
        again = embeddings(session.run(None, alone)[0], alone["attention_mask"])
        np.testing.assert_allclose(again[0], got[row], atol=1e-5)
    (want,) = ort.InferenceSession(models.path("minilm"), options()).run(None, given)
    likeness = (got * embeddings(want, given["attention_mask"])).sum(axis=1)
    assert likeness[2] > 0.995  # all of three tokens stay
    assert 0.6 < likeness[0] < 0.995


def test_minilm_runs_on_codes():
    found = int8_kernels.operators(int8_kernels.optimized(converted("minilm")[0]))
    assert found["QAttention"] == 6
    assert found["DynamicQuantizeMatMul"] == 18
    assert found["LayerNormalization"] == 13
    assert not {"MatMul", "FusedMatMul", "Softmax", "SkipLayerNormalization"} & found.keys()


def test_minilm_still_agrees_with_people(tmp_path):
    path = tmp_path / "out.onnx"
    storage.save(converted("minilm")[0], path)
    for task in (None, "wordsim353"):
        assert evaluate(path, task).value == pytest.approx(float_score("minilm", task).value, abs=0.01)


def test_speech_detector_is_refused_node_by_node():
    model, outcome = converted("silero-vad")
    assert not any(d.taken for d in outcome.decisions)
    assert {d.reason for d in outcome.decisions} >= {"int8-dynamic does not take Conv"}
    assert "com.microsoft" not in model.graph.opset_imports
