"""Perplexity and divergence of small decoders, against NumPy; and what cannot be judged so."""

from __future__ import annotations

import math

import decoders
import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress.optimizer.analysis.evaluate import check, evaluate
from onnxpress.optimizer.errors import OnnxpressError, UsageError
from onnxpress.optimizer.evaluation.metrics import choose_metric
from onnxpress.optimizer.evaluation.texts import Text, TextMetric

COUNT, NOISE = 70, 0.05


@pytest.fixture
def place(tmp_path):
    """A folder with the float model, one with noise, a text and its tokenizer."""
    ir.save(decoders.decoder(), tmp_path / "float.onnx")
    ir.save(decoders.decoder(NOISE), tmp_path / "noisy.onnx")
    decoders.tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "text.txt").write_text(decoders.text(COUNT))
    return tmp_path


def naive(window: int, stride: int, count: int = COUNT) -> tuple[int, float, float, float, float]:
    """Tokens that count, both perplexities, the divergence, and the share of equal most likely tokens."""
    ids = decoders.ids_of(decoders.text(COUNT))[:count]
    told: list[tuple[float, float, float, bool]] = []
    seen = 0
    for begin in range(0, count - window + 1, stride):
        tokens = ids[begin : begin + window]
        p, q = (_softmax(decoders.logits_of(tokens, noise)) for noise in (0.0, NOISE))
        for place in range(max(1, seen - begin), window):
            a, b, token = p[place - 1], q[place - 1], tokens[place]
            told.append((-np.log(a[token]), -np.log(b[token]), (a * np.log(a / b)).sum(), a.argmax() == b.argmax()))
        seen = begin + window
    mean = np.mean(told, axis=0)
    return len(told), math.exp(mean[0]), math.exp(mean[1]), mean[2], mean[3]


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("window", "stride"), [(10, 10), (16, None), (16, 5), (12, 1), (64, 64)])
def test_each_token_counts_once_with_what_its_window_has_before_it(place, window, stride):
    text = Text(place / "text.txt", window=window, stride=stride)
    count, plain, noisy, nats, same = naive(window, stride or window)
    found = evaluate(place / "float.onnx", "perplexity", text=text)
    assert (found.task, found.metric) == ("perplexity", "perplexity")
    assert found.value == pytest.approx(plain, rel=1e-4)
    assert found.details["tokens"] == count
    found = evaluate(place / "noisy.onnx", "kl", text=text, reference=place / "float.onnx")
    assert found.value == pytest.approx(nats, rel=1e-3)
    assert found.details["same most likely token"] == same < 1
    assert (found.details["perplexity"], found.details["of float32"]) == pytest.approx((noisy, plain), rel=1e-4)
    assert found.details["tokens"] == count


def test_only_the_first_tokens(place):
    found = evaluate(place / "float.onnx", "perplexity", text=Text(place / "text.txt", window=10, tokens=44))
    assert found.details == {"tokens": 36, "windows": 4, "window": 10, "stride": 10}
    assert found.value == pytest.approx(naive(10, 10, 44)[1], rel=1e-4)


def test_a_model_beside_itself_runs_once(place, monkeypatch):
    from onnxpress.optimizer.evaluation import language

    runs = []
    logits = language.Passage.logits
    monkeypatch.setattr(language.Passage, "logits", lambda self, *given: runs.append(given[-1]) or logits(self, *given))
    text, path = Text(place / "text.txt", window=10), place / "float.onnx"
    found = evaluate(path, "kl", text=text, reference=path)
    assert (found.value, found.details["same most likely token"]) == (0, 1)
    assert runs == ["the float model"] * 7


@pytest.mark.parametrize("form", [{"past": 8, "mask": "total"}, {"past": 4, "mask": 20}, {"past": None}, {"flag": True},
                                  {"sequence": 16, "mask": 16}, {"batch": 1}])  # fmt: skip
def test_decoders_of_other_forms(place, form):
    ir.save(decoders.decoder(**form), place / "other.onnx")
    found = evaluate(place / "other.onnx", "perplexity", text=Text(place / "text.txt", window=16))
    assert found.value == pytest.approx(naive(16, 16)[1], rel=1e-4)


def test_a_text_alone_means_perplexity_and_the_tokenizer_may_lie_elsewhere(place):
    (place / "there").mkdir()
    (place / "tokenizer.json").rename(place / "there" / "tokenizer.json")
    text = place / "text.txt"
    for tokenizer in (place / "there", place / "there" / "tokenizer.json"):
        assert evaluate(place / "float.onnx", text=Text(text, tokenizer, 16)).value == pytest.approx(
            naive(16, 16)[1], rel=1e-4
        )
    with pytest.raises(OnnxpressError, match=r"tokenizer\.json: no such file; give the model's tokenizer\.json"):
        evaluate(place / "float.onnx", text=Text(text, window=16))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 1}, "window is 1, must be at least 2"),
        ({"stride": 0}, "stride is 0, must be at least 1"),
        ({"tokens": 1}, "tokens is 1, must be at least 2"),
        ({"window": 8, "stride": 9}, "stride is 9, must be at most the window of 8: tokens between windows"),
        ({"windows": 8}, 'Text has no setting "windows"'),
    ],
)
def test_numbers_that_make_no_sense(settings, message):
    with pytest.raises(UsageError, match=message):
        Text("text.txt", **settings)


def test_requests_that_cannot_be_met(place):
    path, text = place / "float.onnx", Text(place / "text.txt", window=16)
    with pytest.raises(UsageError, match="perplexity needs a text: give text"):
        evaluate(path, "perplexity")
    with pytest.raises(UsageError, match="kl compares with a float model: name it"):
        evaluate(path, "kl", text=text)
    with pytest.raises(UsageError, match="text is read by perplexity, kl, embeddings alone, not by the task 'lee'"):
        evaluate(path, "lee", text=text)
    ir.save(decoders.decoder(sequence=71), path)
    with pytest.raises(
        UsageError, match=r"float\.onnx: cannot be judged by .*has 70 tokens, too few for a window of 71"
    ):
        check(path, "kl", text=text)
    ir.save(decoders.decoder(sequence=16, mask=16), path)
    with pytest.raises(UsageError, match="stride is 20, must be at most the 16 of a window"):
        check(path, text=Text(place / "text.txt", stride=20))


def test_a_tokenizer_of_another_vocabulary_is_refused_before_the_model_runs(place):
    decoders.tokenizer(place / "tokenizer.json", vocabulary=99)
    for task in ("perplexity", "kl"):
        with pytest.raises(UsageError, match=r"makes token 98 of the text, and the model has a table of 11"):
            check(place / "float.onnx", task, text=Text(place / "text.txt", window=16))


def encoder(columns: int, cut: bool = False, axes: int = 3, segments: bool = False) -> ir.Model:
    """Hidden states, or logits of the last token alone."""
    b = graphs.Builder()
    ids = b.input("input_ids", ["b", "s"], ir.DataType.INT64)
    if segments:
        b.input("token_type_ids", ["b", "s"], ir.DataType.INT64)
    y = b.op("Gather", b.constant("E", graphs.weight(decoders.VOCABULARY, 8)), ids)
    y = b.op("MatMul", y, b.constant("W", graphs.weight(8, columns)))
    if cut:
        y = b.op("Slice", y, *(b.constant(n, np.array([v], np.int64)) for n, v in (("l", -1), ("e", 99), ("a", 1))))
    if axes == 2:
        y = b.op("ReduceMean", y, b.constant("axis", np.array([1], np.int64)), keepdims=0)
    b.output(y, ["b", "s", columns][:axes] if axes == 3 else ["b", columns])
    return b.model()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (encoder(4), "has 4 columns, and there are 11 tokens; perplexity and kl need logits .* for an encoder"),
        (encoder(8), r"is \[1, 16, 8\] for 16 tokens with numbers up to 10; perplexity and kl need logits"),
        (encoder(11, cut=True), r"is \[1, 1, 11\] for 16 tokens"),
        (encoder(11, segments=True), "it takes 'token_type_ids', as encoders do, which see the tokens to foretell"),
        (encoder(11, axes=2), "no output of the model has three axes"),
        (graphs.matmul_model(), "text cannot fill input 'x'"),
    ],
)
def test_models_without_logits(place, model, message):
    ir.save(model, place / "other.onnx")
    with pytest.raises(UsageError, match=message):
        evaluate(place / "other.onnx", "perplexity", text=Text(place / "text.txt", window=16))


def test_models_that_do_not_go_together(place):
    text = Text(place / "text.txt", window=16)
    ir.save(decoders.decoder(flag=True), place / "other.onnx")
    with pytest.raises(UsageError, match="use_cache_branch differ"):
        evaluate(place / "other.onnx", "kl", text=text, reference=place / "float.onnx")
    ir.save(encoder(11), place / "one.onnx")
    ir.save(encoder(12), place / "two.onnx")
    with pytest.raises(UsageError, match="has a vocabulary of 12, the float model one of 11"):
        evaluate(place / "two.onnx", "kl", text=text, reference=place / "one.onnx")


def broken() -> ir.Model:
    model = decoders.decoder()
    head = model.graph.initializers["lm_head"]
    head.const_value = ir.tensor(np.full(head.shape.numpy(), np.nan, np.float32), name="lm_head")
    return model


def test_nan(place):
    ir.save(broken(), place / "broken.onnx")
    text = Text(place / "text.txt", window=16)
    assert math.isnan(evaluate(place / "broken.onnx", "perplexity", text=text).value)
    assert math.isnan(evaluate(place / "broken.onnx", "kl", text=text, reference=place / "float.onnx").value)
    with pytest.raises(OnnxpressError, match="the float model's logits are NaN or infinite"):
        evaluate(place / "noisy.onnx", "kl", text=text, reference=place / "broken.onnx")


@pytest.mark.parametrize("as_file", [True, False])
def test_as_metrics_of_conversions(place, as_file):
    text = Text(place / "text.txt", None if as_file else place, window=16)
    original = place / "float.onnx" if as_file else decoders.decoder()
    _, plain, noisy, nats, _ = naive(16, 16)
    metric = choose_metric(TextMetric("perplexity", text), original, [])
    assert (metric.name, metric.reference) == ("perplexity", pytest.approx(plain, rel=1e-4))
    value = metric(decoders.decoder(NOISE))
    assert value == pytest.approx(noisy, rel=1e-4)
    assert metric.loss(value) == pytest.approx(noisy / plain - 1, rel=1e-2)
    assert metric.loss(math.nan) == metric.loss(math.inf) == math.inf
    assert metric.is_better(plain, noisy) == (plain < noisy)
    assert not metric.is_better(math.nan, plain)

    metric = choose_metric(TextMetric("kl", text), original, [])
    assert (metric.name, metric.reference) == ("kl", 0)
    value = metric(decoders.decoder(NOISE))
    assert metric.loss(value) == value == pytest.approx(nats, rel=1e-3)
    assert metric.loss(math.nan) == math.inf
    assert metric(decoders.decoder()) == 0
    assert metric.loss(metric(broken())) == math.inf


def test_metrics_without_a_text_or_a_tokenizer(place):
    with pytest.raises(UsageError, match="kl needs a text"):
        choose_metric("kl", place / "float.onnx", [])
    with pytest.raises(UsageError, match="a text needs the model's tokenizer: give tokenizer"):
        choose_metric(TextMetric("kl", Text(place / "text.txt")), decoders.decoder(), [])


@pytest.mark.parametrize("task", ["perplexity", "kl"])
def test_a_model_that_sees_the_tokens_to_foretell(place, task):
    """An encoder without the input that tells sentences apart: each token is mixed with the mean of all."""
    b = graphs.Builder()
    ids = b.input("input_ids", ["batch", "sequence"], ir.DataType.INT64)
    b.input("attention_mask", ["batch", "sequence"], ir.DataType.INT64)
    weights = decoders.weights()
    h = b.op("Gather", b.constant("tokens", weights["tokens"]), ids)
    mixed = b.op("Add", h, b.op("ReduceMean", h, b.constant("axis", np.array([1], np.int64))))
    logits = b.op("MatMul", mixed, b.constant("lm_head", weights["lm_head"]))
    b.output(logits, ["batch", "sequence", decoders.VOCABULARY])
    ir.save(b.model(), place / "encoder.onnx")
    reference = place / "encoder.onnx" if task == "kl" else None
    with pytest.raises(UsageError, match="depends on those behind it, as of an encoder; perplexity and kl need"):
        evaluate(place / "encoder.onnx", task, text=Text(place / "text.txt", window=10), reference=reference)


def test_a_decoder_without_a_past(place):
    ir.save(decoders.decoder(past=None, mask="sequence"), place / "plain.onnx")
    found = evaluate(place / "plain.onnx", "perplexity", text=Text(place / "text.txt", window=10))
    assert found.value == pytest.approx(naive(10, 10)[1], rel=1e-4)
