from __future__ import annotations

import numpy as np
import pytest
from onnxpress import models
from onnxpress.models import calibration_data, catalogue
from onnxpress.optimizer.errors import UsageError


def test_every_model_has_its_data():
    assert sorted(calibration_data._SOURCES) == sorted(models.names())


def test_unknown_model():
    with pytest.raises(UsageError, match='did you mean "minilm"'):
        models.calibration("minilmm", 1)


def test_noise_is_the_same_whenever_asked():
    first, second = (list(models.calibration("light-vgg19", 3)) for _ in range(2))
    assert len(first) == 3
    for one, two in zip(first, second, strict=True):
        assert np.array_equal(one["data_0"], two["data_0"])
    assert not np.array_equal(first[0]["data_0"], first[1]["data_0"])


def test_lines_are_not_those_of_the_task():
    pytest.importorskip("PIL")
    from onnxpress.models.tasks import reading

    generator = np.random.default_rng(0)
    judged = [reading.render(reading.compose(generator), generator) for _ in range(5)]
    for feeds in models.calibration("ppocr-rec", 5):
        assert not any(np.array_equal(feeds["x"], line) for line in judged)


def test_texts_are_reviews_of_imdb(tmp_path, monkeypatch):
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[UNK]": 0, "good": 1, "bad": 2, "sour": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    reviews = [f"good{'<br />bad' * (199 + i)},1,imdb" for i in range(8)] + ["sour,0,rotten_tomatoes"]
    (tmp_path / "reviews.csv").write_text("\n".join(["text,label,source", *reviews]), encoding="utf-8")
    monkeypatch.setattr(calibration_data, "provide", lambda entry: tmp_path)
    found = list(models.calibration("minilm", 100))
    assert len(found) == 8
    assert [feeds["input_ids"].shape for feeds in found[:3]] == [(1, 128)] * 3
    assert found[3]["input_ids"].shape[1] < 30
    for feeds in found:
        assert set(feeds["input_ids"].ravel()) <= {1, 2}
        assert {array.shape for array in feeds.values()} == {feeds["input_ids"].shape}
    assert catalogue.MOVIE_REVIEWS.main == "reviews.csv"
