from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from onnxpress.models.tasks import reading
from onnxpress.optimizer.errors import OnnxpressError

ALPHABET = ["", *"abc", " "]


def one_hot(classes: list[int]) -> np.ndarray:
    return np.eye(len(ALPHABET), dtype=np.float32)[classes]


@pytest.mark.parametrize(
    ("path", "text"),
    [([0, 1, 1, 0, 1, 2, 2, 0], "aab"), ([3, 3, 3], "c"), ([0, 0], ""), ([1, 4, 1], "a a"), ([1, 0, 1], "aa")],
)
def test_decode_merges_repeats_and_drops_blanks(path, text):
    assert reading.decode(one_hot(path), ALPHABET) == text


def test_more_classes_than_characters_is_an_error():
    with pytest.raises(OnnxpressError, match="5 classes, its metadata names 3 characters"):
        reading.decode(one_hot([0]), ["", "a", "b"])


@pytest.mark.parametrize(
    ("left", "right", "distance"),
    [("", "", 0), ("abc", "abc", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)],
)
def test_edit_distance(left, right, distance):
    assert reading.edit_distance(left, right) == distance


def test_rendered_line_is_what_the_recogniser_takes():
    pytest.importorskip("PIL")
    images = [reading.render("Walnut 42", np.random.default_rng(seed)) for seed in (1, 1, 2)]
    for image in images:
        assert image.dtype == np.float32
        assert image.shape[:3] == (1, 3, 48)
        assert image.shape[3] > 48
        assert -1 <= image.min() < 0 < image.max() <= 1  # dark text on light ground
        assert np.array_equal(image[:, 0], image[:, 2])
    assert np.array_equal(images[0], images[1])
    assert images[0].shape != images[2].shape or not np.array_equal(images[0], images[2])


def test_lines_are_words_and_a_number():
    generator = np.random.default_rng(0)
    lines = [reading.compose(generator) for _ in range(50)]
    assert len(set(lines)) == 50
    for line in lines:
        *words, number = line.split(" ")
        assert 1 <= len(words) <= 3
        assert all(word.lower() in reading._WORDS for word in words)
        assert number.isdecimal()


def test_score_counts_lines_and_characters(monkeypatch):
    """Every second line is read with its first character wrong; spaces are never read."""
    shown: list[str] = []
    monkeypatch.setattr(reading, "compose", lambda _generator: "ab ca")
    monkeypatch.setattr(reading, "render", lambda text, _generator: shown.append(text) or text)

    def run(_outputs, feeds):
        assert feeds == {"image": "ab ca"}
        return [one_hot([1 if len(shown) % 2 else 3, 2, 3, 1])[None]]

    session = SimpleNamespace(
        run=run,
        get_inputs=lambda: [SimpleNamespace(name="image", shape=[1, 3, 48, "width"])],
        get_modelmeta=lambda: SimpleNamespace(custom_metadata_map={"character": "a\nb\nc"}),
    )
    assert reading.fits(session)
    score = reading.accuracy(session, Path("model.onnx"))
    assert score.value == 0.5
    assert score.details == {"lines": 200, "character accuracy": 1 - 100 / 800}


def test_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(OnnxpressError, match=r'pip install "onnxpress\[models\]"'):
        reading.render("x", np.random.default_rng(0))
