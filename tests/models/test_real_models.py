"""The catalogue as it is fetched, and what its models score."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxpress import models
from onnxpress.models import photographs
from onnxpress.models.classifiers import CLASSIFIERS
from onnxpress.models.tasks import detection, reading
from onnxpress.optimizer.analysis.evaluate import evaluate
from scores import float_score

pytestmark = pytest.mark.real

FEEDS = {
    "minilm": {name: np.ones((2, 5), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")},
    "ppocr-rec": {"x": np.zeros((1, 3, 48, 160), np.float32)},
    "ppocr-det": {"x": np.zeros((1, 3, 64, 96), np.float32)},
    "efficientnet-lite0": {"images": np.zeros((2, 3, 224, 224), np.float32)},
    "light-resnet50": {"gpu_0/data_0": np.ones((1, 3, 224, 224), np.float32)},
    **{
        f"light-{name}": {"data_0": np.ones((1, 3, 224, 224), np.float32)}
        for name in ("inception-v1", "vgg19", "densenet121")
    },
    "resnet-nsfw": {"input:0": np.zeros((1, 224, 224, 3), np.float32)},
    "silero-vad": {
        "input": np.zeros((1, 512), np.float32),
        "state": np.zeros((2, 1, 128), np.float32),
        "sr": np.array(16000, np.int64),
    },
}
QUICK = [name for name in models.names() if name != "light-vgg19"]  # which has 570 MB


@pytest.mark.parametrize("name", models.names())
def test_model_is_valid_and_runs(name):
    path = models.path(name)
    if name.startswith("light-"):
        assert path.stat().st_size > 20e6
    else:
        onnx.checker.check_model(path)  # those of random weights have a test of their own
    outputs = ort.InferenceSession(path).run(None, FEEDS[name])
    assert outputs
    assert all(np.isfinite(output).all() for output in outputs)


def test_minilm_agrees_with_people_as_published():
    result = float_score("minilm")
    assert result.task == "lee"
    assert result.details["pairs"] == 1225
    assert result.value == pytest.approx(0.656, abs=0.001)


def test_minilm_knows_words():
    assert float_score("minilm", "wordsim353").value == pytest.approx(0.729, abs=0.001)
    assert float_score("minilm", "simlex999").value == pytest.approx(0.446, abs=0.001)


def test_recogniser_reads(monkeypatch):
    monkeypatch.setattr(reading, "_LINES", 80)
    result = float_score("ppocr-rec")
    assert result.task == "reading"
    assert result.value > 0.95  # the rendering differs a little between versions of FreeType
    assert result.details["character accuracy"] > 0.99


def test_detector_of_speech_hears_it():
    result = evaluate("silero-vad")
    assert (result.task, result.value) == ("speech", 1)
    assert result.details["accuracy"] > 0.85  # it goes on for some frames after a phrase


def test_classifier_knows_what_is_on_photographs():
    session = ort.InferenceSession(models.path("efficientnet-lite0"))
    wanted = {  # places in the list of ImageNet's classes
        "chelsea.png": {281, 282, 285},  # tabby, tiger cat, Egyptian cat
        "coffee.png": {967},  # espresso
        "motorcycle_left.png": {665, 670},  # moped, scooter
        "camera.png": {872},  # tripod
        "rocket.jpg": {657},  # missile
    }
    classifier = CLASSIFIERS[0]
    for name, classes in wanted.items():
        pixels = photographs.photograph(name)
        rows, columns = pixels.shape[:2]
        part = min(rows, columns) // 224  # the middle, thinned out: no filter that a version of pillow could change
        top, left = (rows - 224 * part) // 2, (columns - 224 * part) // 2
        crop = pixels[top:, left:][: 224 * part : part, : 224 * part : part]
        (scores,) = session.run(None, {classifier.input: classifier.preprocess(crop)})
        assert int(scores.argmax()) in classes, name


@pytest.mark.parametrize("name", QUICK)
def test_calibration_data_is_what_the_model_takes(name):
    feeds = list(models.calibration(name, 2))
    assert len(feeds) == 2
    session = ort.InferenceSession(models.path(name))
    for feed in feeds:
        assert all(np.isfinite(output).all() for output in session.run(None, feed))


def test_detector_finds_lines(monkeypatch):
    monkeypatch.setattr(detection, "_PAGES", 15)
    result = evaluate("ppocr-det")
    assert result.task == "detection"
    assert result.value > 0.9
    assert result.details["recall"] > 0.95


@pytest.mark.parametrize("name", QUICK)
def test_default_task_is_the_one_that_the_catalogue_names(name):
    from onnxpress.models.tasks import TASKS

    session = ort.InferenceSession(models.path(name))
    fitting = [task.name for task in TASKS.values() if task.fits(session)]
    assert (fitting or [None])[0] == models.entry(name).task
