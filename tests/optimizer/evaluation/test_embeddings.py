"""Vectors of sentences against those of a float model, as NumPy has them; and what cannot be judged so."""

from __future__ import annotations

import math

import graphs
import numpy as np
import onnx_ir as ir
import pytest
import tokenizers
from command_line import runner
from onnxpress.optimizer import Calibration, Recipe, optimize
from onnxpress.optimizer.analysis.evaluate import evaluate
from onnxpress.optimizer.errors import OnnxpressError, UsageError
from onnxpress.optimizer.evaluation import embeddings
from onnxpress.optimizer.evaluation.metrics import choose_metric
from onnxpress.optimizer.evaluation.texts import Text, TextMetric

WORDS = ["[PAD]", "[UNK]", *(f"w{i}" for i in range(90))]
HIDDEN, WIDTH = 32, 40
I64 = ir.DataType.INT64
SENTENCES = [
    " ".join(f"w{word}" for word in np.random.default_rng(seed).integers(0, 90, 2 + seed % 6)) for seed in range(40)
]


def weights(noise: float) -> tuple[np.ndarray, np.ndarray]:
    """The table of tokens, and what makes hidden states of its rows."""
    rng = np.random.default_rng(0)
    table, product = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((len(WORDS), HIDDEN), (HIDDEN, WIDTH))
    )
    return table, product + np.float32(noise) * np.random.default_rng(1).standard_normal((HIDDEN, WIDTH), np.float32)


def encoder(noise: float = 0.0, sentence: bool = False, width: int = WIDTH) -> ir.Model:
    """Hidden states that are rows of a table times a matrix, and perhaps the vector of the first token's state."""
    b = graphs.Builder()
    ids = b.input("input_ids", ["batch", "sequence"], I64)
    b.input("attention_mask", ["batch", "sequence"], I64)
    table, product = weights(noise)
    rows = b.op("Gather", b.constant("table", table), ids)
    hidden = b.op("MatMul", rows, b.constant("product", np.ascontiguousarray(product[:, :width])), name="product")
    b.output(hidden, ["batch", "sequence", width])
    if sentence:
        first = b.op("Gather", hidden, b.constant("zero", np.array(0)), axis=1)
        b.output(first, ["batch", width])
        first.name = "sentence_embedding"
    return b.model()


def naive(noise: float, sentence: bool = False, most: int | None = None) -> np.ndarray:
    table, product = weights(noise)
    rows = []
    for line in SENTENCES:
        ids = [WORDS.index(word) for word in line.split()][:most]
        state = table[ids].astype(np.float64) @ product
        mean = state[0] if sentence else state.mean(axis=0)
        rows.append(mean / np.linalg.norm(mean))
    return np.array(rows)


def neighbours(vectors: np.ndarray) -> list[int]:
    return [max((j for j in range(len(vectors)) if j != i), key=lambda j: vectors[i] @ vectors[j])
            for i in range(len(vectors))]  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a float model and one with noise, a text and its tokenizer."""
    monkeypatch.chdir(tmp_path)
    ir.save(encoder(), "float.onnx")
    ir.save(encoder(0.5), "noisy.onnx")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save("tokenizer.json")
    (tmp_path / "lines.txt").write_text("\n\n".join(SENTENCES) + "\n")
    return tmp_path


@pytest.mark.parametrize("rows", [7, 1024])
@pytest.mark.parametrize("most", [None, 2])
def test_equals_the_equations(place, monkeypatch, rows, most):
    monkeypatch.setattr(embeddings, "_ROWS", rows)
    found = evaluate("noisy.onnx", "embeddings", text=Text("lines.txt", window=most), reference="float.onnx")
    wanted, moved = naive(0, most=most), naive(0.5, most=most)
    cosines = (wanted * moved).sum(axis=1)
    same = np.mean([a == b for a, b in zip(neighbours(wanted), neighbours(moved), strict=True)])
    assert (found.task, found.metric) == ("embeddings", "embeddings")
    assert found.value == pytest.approx(cosines.mean(), abs=1e-6)
    assert found.details == {
        "least cosine": pytest.approx(cosines.min(), abs=1e-6),
        "same nearest neighbour": pytest.approx(same),
        "sentences": 40,
    }
    assert same < 1


def test_a_model_that_gives_the_vector_itself(place):
    for name, noise in (("float.onnx", 0.0), ("noisy.onnx", 0.5)):
        ir.save(encoder(noise, sentence=True), name)
    found = evaluate("noisy.onnx", "embeddings", text=Text("lines.txt"), reference="float.onnx")
    expected = (naive(0, sentence=True) * naive(0.5, sentence=True)).sum(axis=1)
    assert found.value == pytest.approx(expected.mean(), abs=1e-6)


def test_a_model_beside_itself_runs_once(place, monkeypatch):
    runs = []
    vectors = embeddings.Sentences._vectors
    monkeypatch.setattr(
        embeddings.Sentences, "_vectors", lambda self, *given: runs.append(given[-1]) or vectors(self, *given)
    )
    found = evaluate("float.onnx", "embeddings", text=Text("lines.txt"), reference="float.onnx")
    assert found.value == pytest.approx(1)
    assert found.details["same nearest neighbour"] == 1
    assert runs == ["the float model"]


def test_as_a_metric(place):
    metric = choose_metric(TextMetric("embeddings", Text("lines.txt", "tokenizer.json")), place / "float.onnx", [])
    assert (metric.name, metric.reference, metric.less_is_better, metric.in_nats) == ("embeddings", 1.0, False, False)
    assert metric(encoder()) == pytest.approx(1, abs=1e-6)
    assert metric(encoder(0.5)) == pytest.approx((naive(0) * naive(0.5)).sum(axis=1).mean(), abs=1e-6)
    assert math.isnan(metric(encoder(math.nan)))


def test_conversion_within_a_bound(place):
    """Rounding to four bits alone loses more than is allowed."""
    recipe = Recipe(scheme="int4", metric="embeddings", text="lines.txt", max_drop=0.0005)
    report = optimize("float.onnx", recipe, "out.onnx", calibration=Calibration("lines.txt"))
    found = evaluate("out.onnx", "embeddings", text=Text("lines.txt"), reference="float.onnx")
    assert found.value >= 0.9995
    assert len(report.trail) > 1


def test_command(place, monkeypatch, capsys):
    run = runner(monkeypatch, capsys)
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run("evaluate", "float.onnx", "noisy.onnx", "--task", "embeddings", "--text", "lines.txt")
    first, second = (line.split() for line in out.splitlines()[1:])
    assert (code, first[:4]) == (0, ["float.onnx", "embeddings", "embeddings", "1.0000"])
    assert float(second[3]) == pytest.approx((naive(0) * naive(0.5)).sum(axis=1).mean(), abs=1e-4)
    assert "same nearest neighbour" in out
    code, out, _ = run("compare", "float.onnx", "noisy.onnx", "--task", "embeddings", "--text", "lines.txt")
    assert (code, "embeddings" in out) == (0, True)
    code, out, _ = run("study", "float.onnx", "--schemes", "int8", "--task", "embeddings", "--text", "lines.txt")
    assert (code, "1 of 1" in out) == (0, True)


def test_requests_that_cannot_be_met(place, monkeypatch, capsys):
    run = runner(monkeypatch, capsys)
    (place / "short.txt").write_text("w1\n\n")
    ir.save(encoder(width=4), "other.onnx")
    for arguments, told in (
        (["float.onnx", "--text", "lines.txt"], "embeddings compares with a float model: name that first"),
        (["float.onnx", "noisy.onnx"], "embeddings needs a text: give --text"),
        (["float.onnx", "noisy.onnx", "--text", "lines.txt", "--stride", "3"], "--stride: read with windows of a text"),
        (["float.onnx", "noisy.onnx", "--text", "short.txt"], "short.txt: has fewer than two lines"),
        (["float.onnx", "other.onnx", "--text", "lines.txt"], "other.onnx: has vectors of 4 numbers, the float model"),
    ):
        code, _, err = run("evaluate", *arguments, "--task", "embeddings")
        assert (code, told in err) == (2, True), err
    (place / "tokenizer.json").rename(place / "moved.json")
    with pytest.raises(OnnxpressError, match=r"tokenizer.json: no such file; give the model's tokenizer.json"):
        evaluate("noisy.onnx", "embeddings", text=Text("lines.txt"), reference="float.onnx")
    found = evaluate("float.onnx", "embeddings", text=Text("lines.txt", "moved.json"), reference="float.onnx")
    assert found.value == pytest.approx(1)


def test_models_that_are_no_encoders(place):
    b = graphs.Builder()
    x = b.input("x", ["batch", 2])
    b.output(b.op("Relu", x), ["batch", 2])
    ir.save(b.model(), "other.onnx")
    with pytest.raises(UsageError, match=r"the float model: cannot be judged by embeddings; it needs the inputs"):
        evaluate("float.onnx", "embeddings", text=Text("lines.txt"), reference="other.onnx")
    ir.save(encoder(math.nan), "other.onnx")
    with pytest.raises(OnnxpressError, match="the float model's vectors are NaN or infinite"):
        evaluate("float.onnx", "embeddings", text=Text("lines.txt"), reference="other.onnx")


def test_settings_that_sentences_do_not_read():
    with pytest.raises(UsageError, match="stride: not read with metric embeddings, which takes the text line by line"):
        Recipe.from_mapping({"scheme": "int4", "metric": "embeddings", "text": "t.txt", "stride": 4})
