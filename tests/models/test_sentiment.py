from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from onnxpress.models import catalogue
from onnxpress.models.tasks import sentiment, similarity
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.analysis.evaluate import evaluate


@pytest.fixture
def reviews(tmp_path, monkeypatch):
    """6,500 sentences, "good N" or "bad N", among reviews of another source, and no encoder but the word."""
    rows = [f"good {i},1,rotten_tomatoes\nbad {i},0,rotten_tomatoes" for i in range(3250)]
    (tmp_path / "reviews.csv").write_text("\n".join(["text,label,source", "long,1,imdb", *rows]), encoding="utf-8")
    monkeypatch.setenv("ONNXPRESS_CACHE", str(tmp_path))
    monkeypatch.setattr(sentiment, "provide", lambda _entry: tmp_path)
    monkeypatch.setattr(catalogue, "path", lambda _name: Path("original.onnx"))
    monkeypatch.setattr(sentiment.sessions, "open_session", lambda _path, _options: "original")
    shown: dict[str, list[str]] = {}

    class Embedder:
        tokenizer_name = "none"

        def __init__(self, session, _model):
            self.session = session

        def __call__(self, texts):
            shown[self.session] = texts
            wrong = "7" if self.session == "damaged" else "none"  # sentences with this figure are turned round
            good = [(text.startswith("good")) != (wrong in text) for text in texts]
            return np.array([[1, 0] if one else [0, 1] for one in good], np.float32)

    monkeypatch.setattr(similarity, "Embedder", Embedder)
    return shown


def test_head_is_fitted_once_and_judges_other_sentences(reviews, tmp_path):
    score = sentiment.sentiment("original", Path("m.onnx"))
    assert score.value == 1
    assert score.details["sentences"] == 3000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reviews.csv", "sentiment-head-1.npy"]
    trained = set(sentiment.sentences()[0][:3000])
    damaged = sentiment.sentiment("damaged", Path("m.onnx"))
    assert not trained & set(reviews["damaged"])
    assert damaged.value == np.mean(["7" not in text for text in reviews["damaged"]])


def test_fit_is_where_the_gradient_vanishes():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(0, 1, (200, 5)).astype(np.float32), rng.random(200) < 0.6
    weights = sentiment.fit(x, labels)
    p = 1 / (1 + np.exp(-(x @ weights[:-1] + weights[-1])))
    np.testing.assert_allclose(x.T @ (p - labels) + weights[:-1], 0, atol=1e-6)
    assert abs((p - labels).sum()) < 1e-4


def test_probe_fits_a_head_of_its_own(monkeypatch):
    """On embeddings that are turned around, where the original's head is wrong about every sentence."""
    monkeypatch.setattr(sentiment, "_TRAINED_ON", 60)
    monkeypatch.setattr(sentiment, "_JUDGED_BY", 40)
    rng = np.random.default_rng(0)
    labels = rng.random(120) < 0.5
    vectors = rng.normal(0, 0.1, (120, 4)).astype(np.float32)
    vectors[:, 2] += np.where(labels, -1, 1)
    monkeypatch.setattr(sentiment, "sentences", lambda: ([str(i) for i in range(120)], labels))
    monkeypatch.setattr(sentiment.similarity, "Embedder", lambda _session, _model: Embedding(vectors, "none"))
    score = sentiment.probe(None, Path("m.onnx"))
    assert score.value == 1.0
    assert score.details["sentences"] == 40


def test_whole_reviews_are_probed_and_cut(reviews, monkeypatch):
    """Those of the other source; a head on 60 judges 40 others."""
    monkeypatch.setattr(sentiment, "_REVIEWS_TRAINED_ON", 60)
    monkeypatch.setattr(sentiment, "_REVIEWS_JUDGED_BY", 40)
    rng = np.random.default_rng(0)
    labels = rng.random(120) < 0.5
    vectors = rng.normal(0, 0.1, (120, 4)).astype(np.float32)
    vectors[:, 2] += np.where(labels, -1, 1)
    cut = []

    def embedder(_session, _model, most_tokens):
        cut.append(most_tokens)
        return Embedding(vectors, "none")

    assert sentiment.reviews()[0] == ["long"]
    monkeypatch.setattr(sentiment, "reviews", lambda: ([str(i) for i in range(120)], labels))
    monkeypatch.setattr(sentiment.similarity, "Embedder", embedder)
    score = sentiment.movie_reviews(None, Path("m.onnx"))
    assert (score.value, score.details["reviews"], cut) == (1.0, 40, [384])


class Embedding:
    def __init__(self, vectors, name):
        self.vectors, self.tokenizer_name = vectors, name

    def __call__(self, texts):
        return self.vectors[[int(text) for text in texts]]


def test_only_encoders_of_this_width_fit():
    def session(width):
        return SimpleNamespace(
            get_inputs=lambda: [SimpleNamespace(name=name) for name in ("input_ids", "attention_mask")],
            get_outputs=lambda: [SimpleNamespace(shape=["batch", "sequence", width])],
        )

    assert sentiment.fits(session(384))
    assert not sentiment.fits(session(768))


@pytest.mark.real
def test_the_float_and_the_int8_encoder_find_the_sides_of_the_same_sentences(monkeypatch, tmp_path):
    """Few sentences; a head of its own, as what is fitted on them must not be kept."""
    monkeypatch.setattr(sentiment, "_TRAINED_ON", 400)
    monkeypatch.setattr(sentiment, "_JUDGED_BY", 200)
    monkeypatch.setattr(sentiment, "cache_folder", lambda: tmp_path)
    report = optimize("minilm", Recipe(scheme="int8-dynamic"), tmp_path / "int8.onnx")
    values = [evaluate(model, "sentiment") for model in ("minilm", report.output)]
    assert [value.details["sentences"] for value in values] == [200, 200]
    # Chance is 0.5 with a deviation of 0.04, that between two judges who differ in a tenth of all 0.02.
    assert values[0].value > 0.65
    assert abs(values[0].value - values[1].value) < 0.06
