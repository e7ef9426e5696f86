"""Tokens leave an encoder layer by layer and come back, against a model in NumPy without batches and padding."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from dropped_tokens import Naive
from encoder_layers import LayerModel
from encoders import HIDDEN
from onnxpress.optimizer.errors import OnnxpressError
from onnxpress.optimizer.passes.base import run_all
from onnxpress.optimizer.passes.clean_up import CleanUp
from onnxpress.optimizer.passes.drop_tokens import DropTokens
from onnxpress.optimizer.passes.fuse_attention import FuseAttention
from onnxpress.optimizer.passes.recognise_activations import RecogniseActivations
from onnxpress.optimizer.passes.recognise_norms import RecogniseNorms
from sessions import options

LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
LENGTHS = (40, 18, 1)
LEAST = 8


def prepared(case: LayerModel) -> tuple[ir.Model, list[ir.Node]]:
    """The model, and the attentions of its layers."""
    model, fuse = case.model(), FuseAttention()
    run_all(model, (CleanUp(), RecogniseActivations(), RecogniseNorms(), fuse))
    return model, list(fuse.fused)


def dropped(case: LayerModel, lengths, is_input=False) -> ir.Model:
    model, attentions = prepared(case)
    DropTokens(lengths, attentions, is_input)(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model


def run(model: ir.Model, feeds, level=LEVELS[1]) -> list[np.ndarray]:
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options(graph_optimization_level=level)
    )  # fmt: skip
    return session.run(None, feeds)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize(
    "lengths", [(0.5,), (0.75, 0.4, 0.25), (1.0, 0.5, 0.5), (6, 3, 2), (0.6, 3, 0.01)], ids=str
)  # fmt: skip
@pytest.mark.parametrize("level", LEVELS)
def test_as_texts_alone(lengths, norm_first, level):
    case = LayerModel(layers=4, norm_first=norm_first)
    feeds = case.feeds(LENGTHS)
    (y,) = run(dropped(case, lengths), feeds, level)
    (everything,) = run(case.model(), feeds, level)
    naive = Naive(case)
    for row, length in enumerate(LENGTHS):
        want = naive(feeds["x"][row, :length], lengths)[-1]
        np.testing.assert_allclose(y[row, :length], want, atol=2e-5)
    assert np.abs(y - everything)[0].max() > 1e-2  # something was dropped


def test_the_model_of_these_tests_is_the_one_in_numpy():
    case = LayerModel(layers=2)
    feeds = case.feeds((9,))
    np.testing.assert_allclose(run(case.model(), feeds)[0][0], Naive(case)(feeds["x"][0], ())[-1], atol=2e-5)


def test_without_a_mask():
    case = LayerModel(layers=3, mask=False)
    feeds = case.feeds((27, 27))
    (y,) = run(dropped(case, (0.6, 0.3)), feeds)
    for row in range(2):
        np.testing.assert_allclose(y[row], Naive(case)(feeds["x"][row], (0.6, 0.3))[-1], atol=2e-5)


@pytest.mark.parametrize("is_input", [False, True])
def test_all_tokens_are_the_model(is_input):
    case = LayerModel(layers=3)
    feeds = case.feeds(LENGTHS)
    (y,), (want,) = run(dropped(case, (1.0, 1.0), is_input), feeds), run(case.model(), feeds)
    counted = feeds["attention_mask"] != 0
    np.testing.assert_allclose(y[counted], want[counted], atol=3e-6)


def test_padding_changes_nothing_wherever_it_is():
    case = LayerModel(layers=3)
    model = dropped(case, (0.7, 0.4))
    text = case.feeds((20,), seed=3)["x"]
    (alone,) = run(model, {"x": text, "attention_mask": np.ones((1, 20), np.int64)})
    x = np.random.default_rng(1).standard_normal((4, 40, HIDDEN)).astype(np.float32) * 5
    mask = np.zeros((4, 40), np.int64)
    mask[0, :20] = mask[1, 20:] = mask[2, 1::2] = mask[3] = 1
    for row in range(3):
        x[row, mask[row] != 0] = text[0]
    (y,) = run(model, {"x": x, "attention_mask": mask})
    for row in range(3):
        np.testing.assert_allclose(y[row, mask[row] != 0], alone[0], atol=1e-5)


def test_rows_without_a_text_and_batches_without_rows():
    case = LayerModel(layers=3)
    model = dropped(case, (0.7, 0.4))
    feeds = case.feeds((20, 0), seed=3)
    (y,) = run(model, feeds)
    (alone,) = run(model, {name: value[:1] for name, value in feeds.items()})
    np.testing.assert_allclose(y[0], alone[0], atol=1e-5)
    assert np.isfinite(y).all()
    for level in LEVELS:
        for shape in ((0, 4), (2, 0)):
            empty = {"x": np.zeros((*shape, HIDDEN), np.float32), "attention_mask": np.zeros(shape, np.int64)}
            assert run(model, empty, level)[0].shape == (*shape, HIDDEN)


def test_what_is_not_a_number_stays_in_its_row():
    case = LayerModel(layers=3)
    feeds = case.feeds((19, 19))
    (want,) = run(dropped(case, (0.7, 0.4)), feeds)
    feeds["x"][0, 3, 0] = np.nan
    (y,) = run(dropped(case, (0.7, 0.4)), feeds)
    assert np.isnan(y[0]).any()
    np.testing.assert_allclose(y[1], want[1], atol=1e-5)


@pytest.mark.parametrize("default", [(1.0, 1.0), (0.5, 0.25)])
def test_lengths_as_an_input(default):
    case = LayerModel(layers=3)
    model = dropped(case, default, is_input=True)
    feeds, naive = case.feeds((30,)), Naive(case)
    np.testing.assert_allclose(run(model, feeds)[0][0], naive(feeds["x"][0], default, is_input=True)[-1], atol=2e-5)
    for lengths, means in [
        ((0.8, 0.3), (0.8, 0.3)), ((5, 2), (5, 2)), ((0.4, 0.4), (0.4, 0.4)), ((1e-4, 9), (8, 9)),
        ((1e9, 0.5), (30, 0.5)),
    ]:  # fmt: skip
        (y,) = run(model, {**feeds, "lengths": np.array(lengths, np.float32)})
        want = naive(feeds["x"][0], means, is_input=True)[-1]
        np.testing.assert_allclose(y[0], want, atol=2e-5, err_msg=str(lengths))


def test_who_reads_between_layers_finds_all_tokens():
    case = LayerModel(layers=4)
    model, attentions = prepared(case)
    for layer in range(3):
        name = f"layer.{layer}/norm2" if layer else "norm2"
        value = next(node for node in model.graph if node.name == name).outputs[0]
        model.graph.outputs.append(value)
    names = [value.name for value in model.graph.outputs]
    DropTokens((0.6, 0.6, 0.3), attentions)(model)
    assert [value.name for value in model.graph.outputs] == names
    feeds = case.feeds((29,))
    last, *between = run(model, feeds)
    for got, want in zip((*between, last), Naive(case)(feeds["x"][0], (0.6, 0.6, 0.3)), strict=True):
        np.testing.assert_allclose(got[0], want, atol=2e-5)


def test_layers_that_drop_nothing_stay_fused():
    model = dropped(LayerModel(layers=4), (1.0, 0.5, 0.5))
    assert [node.op_type for node in model.graph].count("Attention") == 3
    assert not DropTokens((1.0, 1.0), prepared(LayerModel(layers=3))[1])(model)


@pytest.mark.parametrize(
    ("case", "lengths", "message"),
    [
        (LayerModel(layers=3), (0.9, 0.8, 0.7), "3 of them, but the model has 3 layers.* give 2 at most"),
        (LayerModel(), (), "needs two layers of an encoder, of which there are 1"),
        (LayerModel(layers=2, residual="other"), (0.5,), "not added to the input of the layer"),
        (LayerModel(layers=2, activation="tanh"), (0.5,), "neither Relu nor Gelu"),
    ],
    ids=str,
)
def test_refused(case, lengths, message):
    with pytest.raises(OnnxpressError, match=message):
        dropped(case, lengths)


def test_layers_apart_are_refused():
    case = LayerModel(layers=2)
    model, attentions = prepared(case)
    with pytest.raises(OnnxpressError, match="does not read what the one of"):
        DropTokens((0.5,), attentions[::-1])(model)


@pytest.mark.parametrize(
    "lengths",
    [(np.nan, 1), (0.5, np.inf), (0, 1), (-1, 1), (1.5, 1), (0.5, 0.6), (3, 4), (1, 2.0**32), (1e-5, 1e-5)],
    ids=str,
)
def test_lengths_at_run_time_are_checked(lengths):
    case = LayerModel(layers=3)
    model = dropped(case, (), is_input=True)
    with pytest.raises(Exception, match="lengths must be shares"):
        run(model, {**case.feeds((9,)), "lengths": np.array(lengths, np.float32)})
