from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from onnxpress.models import catalogue, speech
from onnxpress.models.tasks import speech as task


class Detector:
    """Takes the mean of a frame for the probability and counts frames in its state."""

    def __init__(self, factor: float = 1) -> None:
        self.factor, self.heard = factor, []

    def run(self, _outputs, feeds):
        self.heard.append(feeds)
        probability = np.float32(self.factor * feeds["input"][0, -512:].mean())
        return [probability.reshape(1, 1), feeds["state"] + 1]


def test_clip_is_labelled_by_frame():
    sound, spoken = speech.clip(3, 0)
    assert sound.dtype == np.float32
    assert len(sound) == speech.FRAME * len(spoken)
    assert np.abs(sound).max() <= 1
    changes = np.flatnonzero(np.diff(spoken)) + 1
    assert len(changes) == 6
    assert not spoken[0]
    assert not spoken[-1]
    assert np.diff([0, *changes, len(spoken)]).min() >= 30
    again, other = speech.clip(3, 0)[0], speech.clip(3, 1)[0]
    assert np.array_equal(sound, again)
    assert len(sound) != len(other) or not np.array_equal(sound, other)


def test_resonance_is_where_it_should_be():
    pulse = np.zeros(8000)
    pulse[0] = 1
    spectrum = np.abs(np.fft.rfft(speech._resonate(pulse, [1000.0], [80])))
    assert np.argmax(spectrum) * speech.RATE / 8000 == pytest.approx(1000, abs=10)
    assert spectrum[0] == pytest.approx(1, rel=1e-3)  # gain 1 at 0 Hz, by Klatt's equation 3


def test_resonance_is_the_recursion():
    noise = np.random.default_rng(0).standard_normal(500)
    radius = np.exp(-np.pi * 100 / speech.RATE)
    first, second = 2 * radius * np.cos(2 * np.pi * 500 / speech.RATE), -(radius**2)
    expected = np.zeros(502)
    for n, x in enumerate(noise):
        expected[n + 2] = (1 - first - second) * x + first * expected[n + 1] + second * expected[n]
    np.testing.assert_allclose(speech._resonate(noise, [500.0], [100]), expected[2:], atol=1e-6)


def test_listening_carries_state_and_context():
    sound = np.arange(3 * 512, dtype=np.float32)
    detector = Detector()
    found = list(task.listen(detector, sound))
    assert [probability for _, probability in found] == [255.5, 767.5, 1279.5]
    assert [feeds["state"].max() for feeds in detector.heard] == [0, 1, 2]
    assert detector.heard[0]["input"][0, :64].tolist() == [0] * 64
    assert detector.heard[1]["input"].tolist() == [list(range(448, 1024))]


def test_score(monkeypatch):
    frames, spoken = np.repeat([0.6, 0.2, 0.8, 0.1], 512).astype(np.float32), np.array([True, False, True, True])
    monkeypatch.setattr(speech, "clip", lambda _phrases, _seed: (frames, spoken))
    monkeypatch.setattr(catalogue, "path", lambda name: name)
    monkeypatch.setattr(task.sessions, "open_session", lambda _path, _options: Detector())
    score = task.decisions(Detector(0.7), Path("m.onnx"))
    assert score.value == 0.75  # 0.42 is none where 0.6 was
    assert score.details["accuracy"] == 0.5
    assert score.details["largest difference"] == pytest.approx(0.24)


def test_fits():
    inputs = [SimpleNamespace(name=name) for name in ("input", "state", "sr")]
    assert task.fits(SimpleNamespace(get_inputs=lambda: inputs))
    assert not task.fits(SimpleNamespace(get_inputs=lambda: inputs[:2]))
