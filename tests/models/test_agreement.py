from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
from onnxpress.models import catalogue, classifiers, photographs
from onnxpress.models.tasks import agreement


def session(classes, scores=None, name="images", shape=None):
    """A stand-in that gives the n-th picture the n-th row of scores."""
    rows = iter([] if scores is None else scores)
    return SimpleNamespace(
        get_inputs=lambda: [SimpleNamespace(name=name, shape=["batch", 3, 224, 224])],
        get_outputs=lambda: [SimpleNamespace(name="logits", shape=shape if shape is not None else ["batch", classes])],
        run=lambda _outputs, _feeds: [next(rows)[None]],
    )


def test_share_of_equal_classes(monkeypatch):
    theirs = np.random.default_rng(0).normal(0, 1, (300, 1000)).astype(np.float32)
    ours = theirs.copy()
    ours[::4] = -ours[::4]
    monkeypatch.setattr(catalogue, "path", lambda name: name)
    monkeypatch.setattr(agreement.sessions, "open_session", lambda path, _options: session(1000, theirs))
    monkeypatch.setattr(photographs, "crops", lambda n, size, seed, split: iter(np.zeros((n, size, size, 3), np.uint8)))
    score = agreement.agreement(session(1000, ours), Path("m.onnx"))
    assert score.value == 0.75
    assert score.details["crops"] == 300
    assert score.details["original"] == "efficientnet-lite0"
    assert 0 < score.details["mean distance"] < score.details["largest distance"] <= 1


def test_models_are_known_by_input_and_classes():
    assert agreement.fits(session(1000))
    assert agreement.fits(session(2, name="input:0"))
    assert not agreement.fits(session(2))
    assert not agreement.fits(session(1000, name="x"))
    assert not agreement.fits(session(1000, shape=[]))


def test_probabilities_of_logits_and_of_probabilities():
    logits = np.array([[0.0, np.log(3)], [1000, 1000]])
    np.testing.assert_allclose(agreement.probabilities(logits), [[0.25, 0.75], [0.5, 0.5]])
    already = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert agreement.probabilities(already) is already


def test_preprocessing():
    pixels = np.zeros((224, 224, 3), np.uint8)
    pixels[0, 1] = (255, 127, 0)
    lite, nsfw = (known.preprocess(pixels) for known in classifiers.CLASSIFIERS)
    assert lite.shape == (1, 3, 224, 224)
    assert lite[0, :, 0, 1].tolist() == [1, 0, -127 / 128]
    assert nsfw.shape == (1, 224, 224, 3)
    assert nsfw[0, 0, 1].tolist() == [-104, 10, 132]
    assert {lite.dtype, nsfw.dtype} == {np.dtype(np.float32)}
