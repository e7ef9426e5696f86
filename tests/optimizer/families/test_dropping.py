"""Tokens dropped by int8-dynamic, alone and in whole layers."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from encoder_layers import HIDDEN, LayerModel
from encoders import Encoder
from graphs import matmul_model
from onnxpress.custom_ops import register
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.errors import OnnxpressError, UsageError
from sessions import options, runs

LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
LENGTHS = (40, 18, 1)


def converted(tmp_path, case, name="out", **recipe):
    """The report, and the file."""
    path = tmp_path / f"{name}.onnx"
    return optimize(case.model(), Recipe(scheme="int8-dynamic", **recipe), path), path


def run(path, feeds, ours=False, level=LEVELS[1]):
    chosen = options(graph_optimization_level=level)
    if ours:
        register(chosen)
    return ort.InferenceSession(str(path), chosen).run(None, feeds)[0]


def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def distance(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize("recipe", [{"lengths": "1,0.6,0.4"}, {"lengths": "input"}], ids=str)
@pytest.mark.parametrize("norm_first", [False, True])
def test_layers_apart(recipe, norm_first, tmp_path):
    """As standard operators and fused ones, whatever ONNX Runtime makes of them, and not what all tokens give."""
    case = LayerModel(layers=4, norm_first=norm_first, mask=False)
    report, path = converted(tmp_path, case, **recipe)
    written = operators(path)
    fused = 2 if recipe["lengths"] != "input" else 1
    assert (written.count("QAttention"), written.count("Softmax")) == (fused, 4 - fused)
    assert not {"EncoderLayer", "Attention"} & set(written)
    assert report.rewritten == {"MatMul": 24}
    assert report.details["attention"] == {"fused": fused, "left": {}}
    feeds = case.feeds((24,))
    want = run(path, feeds, level=LEVELS[0])
    assert distance(run(path, feeds), want) < 1e-3
    everything = run(converted(tmp_path, case, "all")[1], feeds)
    assert (distance(want, everything) < 0.02) == (recipe["lengths"] == "input")  # by default all go on


@pytest.mark.parametrize("recipe", [{"lengths": "0.6,0.6,0.3"}, {"lengths": "input", "length_budget": 0.6}], ids=str)
@pytest.mark.parametrize("norm_first", [False, True])
def test_whole_layers(recipe, norm_first, tmp_path):
    """With our kernels the rows of a batch, and their padding, are nothing to each other: bit for bit within layers."""
    case = LayerModel(layers=4, norm_first=norm_first)
    report, path = converted(tmp_path, case, fuse_layers=True, **recipe)
    written = operators(path)
    assert written.count("EncoderLayer") == 4
    assert not {"MatMulInteger", "Softmax", "QAttention"} & set(written)
    assert report.details["layers"] == {"fused": 4, "left": {}}
    feeds = case.feeds(LENGTHS)
    got = run(path, feeds, ours=True)
    for row, length in enumerate(LENGTHS):
        alone = {name: value[row : row + 1, :length] for name, value in feeds.items()}
        np.testing.assert_allclose(run(path, alone, ours=True)[0], got[row, :length], atol=1e-5)
    everything = run(converted(tmp_path, case, "all", fuse_layers=True)[1], feeds, ours=True)
    counted = feeds["attention_mask"] != 0
    assert distance(got[counted], everything[counted]) > 0.01
    np.testing.assert_allclose(got[2, :1], everything[2, :1], atol=1e-6)  # of one token


@pytest.mark.parametrize("level", LEVELS)
def test_whole_layers_that_hand_on_everything(level, tmp_path):
    case = LayerModel(layers=3)
    feeds, counted = case.feeds(LENGTHS), case.feeds(LENGTHS)["attention_mask"] != 0
    _, path = converted(tmp_path, case, fuse_layers=True, lengths="input")
    _, plain = converted(tmp_path, case, "plain", fuse_layers=True)
    for ours in (True, False) if runs("overloads") else (True,):
        got, want = run(path, feeds, ours, level), run(plain, feeds, ours, level)
        assert distance(got[counted], want[counted]) < (1e-5 if ours else 1e-3)
    got = run(path, {**feeds, "lengths": np.array([0.5, 9], np.float32)}, True, level)
    assert distance(got[counted], want[counted]) > 0.01


def test_a_layer_that_cannot_be_whole_drops_all_the_same(tmp_path):
    case = LayerModel(layers=3)
    report, path = converted(tmp_path, case, fuse_layers=True, lengths="0.5,0.3", exclude=("layer.1/out/MatMul",))
    written = operators(path)
    assert (written.count("EncoderLayer"), written.count("Softmax"), written.count("MatMulInteger")) == (2, 1, 3)
    assert list(report.passes["QuantizeEncoderLayers"].values()) == ["a product of the layer stays in float"]
    assert np.isfinite(run(path, case.feeds(LENGTHS), ours=True)).all()


def test_what_the_report_says(tmp_path):
    case = LayerModel(layers=3)
    report, _ = converted(tmp_path, case, lengths="0.5,0.25")
    assert dict(report.rows)["lengths"] == "layers hand on 50%, 25%; 58.3% of the work on tokens"
    assert report.details["lengths"] == [0.5, 0.25]
    report, _ = converted(tmp_path, case, lengths="0.5,16")
    assert dict(report.rows)["lengths"] == "layers hand on 50%, 16 tokens"
    report, _ = converted(tmp_path, case, lengths="input", length_budget=0.6)
    assert dict(report.rows)["lengths"].startswith("an input of the model, by default ")
    assert "leaves first, whatever the lengths" in dict(report.rows)["padding"]
    report, path = converted(tmp_path, case, lengths="1,1")
    assert "lengths" not in dict(report.rows)
    assert operators(path).count("QAttention") == 3


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (matmul_model(), "lengths: no attention of an encoder is recognised: the model has no self-attention"),
        (
            Encoder("relative").model,
            "no attention of an encoder is recognised: more is added to the scores than a mask",
        ),
        (LayerModel(layers=1).model(), "dropping tokens needs two layers of an encoder, of which there are 1"),
        (LayerModel(layers=2).model(), "lengths: 2 of them, but the model has 2 layers"),
        (LayerModel(layers=3, activation="tanh").model(), "layers of an encoder one behind the other: .*neither Relu"),
        (LayerModel(layers=3, shared="hidden").model(), ".*others read what is between attention and perceptron"),
    ],
)
def test_refused(model, message, tmp_path):
    with pytest.raises(OnnxpressError, match=message):
        optimize(model, Recipe(scheme="int8-dynamic", lengths="0.9,0.8"), tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("key", ["lengths", "length_budget"])
def test_schemes_that_drop_nothing(key, tmp_path):
    """Sparse and the others fuse no layers, by which tokens are found."""
    for scheme in ("sparse", "int8-static", "float", "int4"):
        with pytest.raises(UsageError, match=f"{key}: not read by scheme {scheme}"):
            optimize(LayerModel(layers=3).model(), Recipe(scheme=scheme, **{key: "0.5" if key == "lengths" else 0.5}))


@pytest.mark.parametrize("lengths", ["1,1", "0.7,0.4", "input"])
@pytest.mark.parametrize("fuse_layers", [False, True])
def test_batches_without_rows_and_rows_without_tokens(lengths, fuse_layers, tmp_path):
    case = LayerModel(layers=3)
    _, path = converted(tmp_path, case, lengths=lengths, fuse_layers=fuse_layers)
    for shape in ((0, 9), (2, 0), (0, 0)):
        fed = {"x": np.zeros((*shape, HIDDEN), np.float32), "attention_mask": np.ones(shape, np.int64)}
        assert run(path, fed, ours=True).shape == (*shape, HIDDEN)
