"""Language models judged on a text from the command line: evaluate, compare, study and optimize."""

from __future__ import annotations

import json
import math

import decoders
import numpy as np
import onnx_ir as ir
import pytest
from command_line import runner
from onnxpress.optimizer import Calibration, Recipe, UsageError, optimize
from onnxpress.optimizer.analysis.evaluate import evaluate
from onnxpress.optimizer.evaluation.texts import Text
from onnxpress.optimizer.model_io import storage
from sessions import RUNS_FLOAT8_PRODUCTS, RUNS_TWO_BITS

TEXT = ("--text", "text.txt", "--window", "16")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command line in a folder with two decoders, a text and its tokenizer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    ir.save(decoders.decoder(), "a.onnx")
    ir.save(decoders.decoder(0.05), "b.onnx")
    decoders.tokenizer("tokenizer.json")
    (tmp_path / "text.txt").write_text(decoders.own_text(70, 16))
    (tmp_path / "more.txt").write_text(decoders.text(200, seed=1))
    return runner(monkeypatch, capsys)


def value_of(model: str, task: str) -> float:
    return evaluate(model, task, text=Text("text.txt", window=16), reference="a.onnx").value


def test_evaluate(run):
    code, out, _ = run("evaluate", "a.onnx", "b.onnx", *TEXT)
    plain, noisy = value_of("a.onnx", "perplexity"), value_of("b.onnx", "perplexity")
    first, second = (line.split() for line in out.splitlines()[1:])
    assert (code, first[:4]) == (0, ["a.onnx", "perplexity", "perplexity", f"{plain:.4f}"])
    assert second[3:5] == [f"{noisy:.4f}", f"{noisy - plain:+.4f}"]
    assert second[5:] == ["tokens", "60,", "windows", "4,", "window", "16,", "stride", "16"]
    told = json.loads(run("evaluate", "a.onnx", "b.onnx", "--task", "kl", *TEXT, "--stride", "4", "--json")[1])
    assert told[0]["value"] == 0
    assert told[1]["value"] > 0
    assert told[1]["details"]["stride"] == 4
    assert told[1]["details"].keys() > {"same most likely token", "perplexity", "of float32"}


def test_the_tokenizer_beside_the_first_model_serves_the_others(run, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "b.onnx").rename(tmp_path / "made" / "b.onnx")
    for task in ("perplexity", "kl"):
        code, out, err = run("evaluate", "a.onnx", "made/b.onnx", "--task", task, *TEXT)
        assert code == 0, err
        assert "made/b.onnx" in out
    code, _, err = run("evaluate", "made/b.onnx", "a.onnx", *TEXT)
    assert code == 1
    assert "made/tokenizer.json: no such file" in err


def test_evaluate_on_our_execution_provider(run):
    told = json.loads(run("evaluate", "a.onnx", "--ep", "--task", "kl", *TEXT, "--json")[1])
    assert [one["model"] for one in told] == ["a.onnx", "a.onnx + ep"]
    assert [one["value"] for one in told] == pytest.approx([0, 0], abs=1e-6)


def test_nan_is_null_in_json(run):
    model = decoders.decoder()
    head = model.graph.initializers["lm_head"]
    head.const_value = ir.tensor(np.full((decoders.HIDDEN, decoders.VOCABULARY), math.nan, np.float32), name="lm_head")
    ir.save(model, "nan.onnx")
    (told,) = json.loads(run("evaluate", "nan.onnx", *TEXT, "--json")[1])
    assert told["value"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.onnx", "--task", "perplexity"], "perplexity needs a text: give --text"),
        (["a.onnx", "--task", "kl", *TEXT], "kl compares with a float model: name that first"),
        (["a.onnx", "--task", "lee", *TEXT], "--text is read by perplexity, kl, embeddings alone, not by the task 'le"),
        (["a.onnx", "--stride", "4", "--tokens", "9"], "--stride, --tokens: read with --text alone"),
        (["a.onnx", *TEXT, "--stride", "17"], "--stride is 17, must be at most the --window of 16"),
        (["a.onnx", *TEXT[:2], "--tokens", "9"], "--tokens is 9, fewer than the 64 of a window"),
        (["a.onnx", *TEXT, "--tokenizer", "nowhere"], "nowhere: no such file; give the model's tokenizer.json"),
        (["a.onnx", *TEXT[2:], "--text", "none.txt"], "none.txt: cannot read"),
        (["a.onnx", *TEXT[2:], "--text", "a.onnx"], "a.onnx: is no text in UTF-8"),
        (["a.onnx", *TEXT[2:], "--text", "."], ".: is a folder; give a text file"),
    ],
)  # fmt: skip
def test_what_evaluate_refuses(run, arguments, message):
    code, out, err = run("evaluate", *arguments)
    assert code in (1, 2)
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_compare(run):
    told = json.loads(run("compare", "a.onnx", "b.onnx", *TEXT, "--json")[1])
    (judged,) = told["judged"]
    assert (judged["model"], judged["task"]) == ("b.onnx", "kl")
    assert judged["value"] == pytest.approx(value_of("b.onnx", "kl"), rel=1e-6)
    assert {tensor["name"] for tensor in told["tensors"] if tensor["output"]} > {"logits"}
    _, out, _ = run("compare", "a.onnx", "b.onnx", "--task", "perplexity", *TEXT)
    for model in ("a.onnx", "b.onnx"):
        assert f"perplexity {value_of(model, 'perplexity'):.5g}  {model}" in out
    assert json.loads(run("compare", "a.onnx", "b.onnx", "--json")[1])["judged"] == []
    for arguments, message in (
        (["--task", "perplexity"], "perplexity needs a text: give --text"),
        ([*TEXT, "--dim", "sequence=8"], "--dim: the text has sizes of its own"),
        (["--task", "lee"], "the task 'lee' does not fit this model"),
    ):
        code, _, err = run("compare", "a.onnx", "b.onnx", *arguments)
        assert code == 2
        assert message in err


@pytest.mark.skipif(not RUNS_TWO_BITS, reason="MatMulNBits of ONNX Runtime 1.23 has 4 and 8 bits")
def test_study(run):
    code, out, _ = run("study", "a.onnx", "--schemes", "int8,int2", *TEXT, "--task", "kl", "--plot", "s.png")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert [line[1:3] for line in lines[1:4]] == [["float32", "kl"], ["int8", "kl"], ["int2", "kl"]]
    assert [line[5:7] for line in lines[2:4]] == [["nats", "yes"], ["nats", "no"]]
    assert "coverage: the models that lose 1 % at most, or 0.02 nats per token" in out
    told = json.loads(run("study", "a.onnx", "--schemes", "int8,int2", *TEXT, "--json")[1])
    float32, int8, int2 = told["verdicts"]
    assert float32["metric"] == "perplexity"
    assert int8["loss"] == pytest.approx(int8["value"] / float32["value"] - 1)
    assert [one["passed"] for one in (int8, int2)] == [True, False]
    told = json.loads(run("study", "a.onnx", "--schemes", "int2", *TEXT, "--task", "kl", "--max-kl", "50", "--json")[1])
    assert told["verdicts"][1]["passed"]
    for arguments, message in (
        (["--task", "kl"], "kl needs a text: give --text"),
        ([*TEXT, "--task", "lee"], "--text is read by perplexity, kl, embeddings alone"),
        ([*TEXT, "--max-kl", "0"], "--max-kl is 0.0, must be nats per token, above 0"),
    ):
        code, _, err = run("study", "a.onnx", *arguments)
        assert code == 2
        assert message in err


CALIBRATED = ("--scheme", "int8-static", "--calibration", "more.txt", "--length", "16", "--json")


def test_optimize_keeps_layers_in_float_for_a_bound_on_kl(run):
    report = json.loads(run("optimize", "a.onnx", *CALIBRATED, *TEXT, "--max-kl", "0.001", "-o", "o.onnx")[1])
    metric, search = report["details"]["metric"], report["details"]["mixed_precision"]
    assert (metric["name"], metric["float32"]) == ("kl", 0)
    assert metric["int8"] == pytest.approx(value_of("o.onnx", "kl"), rel=1e-3)
    assert metric["int8"] <= 0.001
    assert search["met"]
    assert len(search["kept"]) > 0
    assert search["trials"][0]["drop"] == search["trials"][0]["value"] > 0.001
    assert report["recipe"].items() >= {"max_kl": 0.001, "text": "text.txt", "window": 16}.items()
    assert json.loads(storage.load("o.onnx").metadata_props["onnxpress.recipe"]) == report["recipe"]
    assert Recipe.from_mapping(report["recipe"]).judged_by == "kl"


@pytest.mark.skipif(not RUNS_FLOAT8_PRODUCTS, reason="ONNX Runtime before 1.32 refuses products of FLOAT8")
def test_optimize_keeps_layers_in_float_for_a_bound_on_perplexity(run):
    bound = ("--scheme", "fp8-e5m2-static", "--metric", "perplexity", "--max-drop", "2%")
    report = json.loads(run("optimize", "a.onnx", *CALIBRATED[2:], *TEXT, *bound, "-o", "o.onnx")[1])
    metric, search = report["details"]["metric"], report["details"]["mixed_precision"]
    assert metric["float32"] == pytest.approx(value_of("a.onnx", "perplexity"), rel=1e-5)
    assert metric["minifloat"] <= 1.02 * metric["float32"]
    assert search["met"]
    assert len(search["kept"]) > 0
    assert search["trials"][0]["value"] > 1.02 * metric["float32"]  # less is better
    assert all(t["drop"] == pytest.approx(t["value"] / metric["float32"] - 1) for t in search["trials"])


def test_the_text_of_the_calibration_is_the_metrics_by_default(run):
    calibration = Calibration("text.txt", length=16)
    recipe = Recipe(scheme="int8-static", metric="perplexity", window=16)
    report = optimize("a.onnx", recipe, "o.onnx", calibration=calibration)
    assert report.details["metric"]["float32"] == pytest.approx(value_of("a.onnx", "perplexity"), rel=1e-5)
    assert report.recipe["metric"] == "perplexity"


def test_arrays_to_calibrate_with_beside_a_text(run):
    ids = decoders.ids_of(decoders.text(64)).reshape(4, 16)
    arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.tile(np.arange(16), (4, 1))}
    ir.save(decoders.decoder(past=None), "c.onnx")
    np.savez("data.npz", **arrays)
    code, out, err = run(
        "optimize", "c.onnx", "--scheme", "int8-static", "--calibration", "data.npz", "--metric", "kl", *TEXT,
        "--tokenizer", "tokenizer.json", "--json", "-o", "o.onnx",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["details"]["metric"]["name"] == "kl"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": "kl", "max_drop": 0.1}, "max_drop: not read with metric kl, whose bound is max_kl"),
        ({"max_kl": 0.1, "max_drop": 0.1}, "max_drop: not read with metric kl, whose bound is max_kl"),
        ({"metric": "perplexity", "max_kl": 0.1}, "max_kl: not read with metric perplexity, only with kl"),
        ({"metric": "lee", "text": "t.txt"}, "text: not read with metric lee, only with perplexity, kl, embeddings"),
        ({"window": 8}, "window: not read with metric the cosine of outputs, only with"),
        ({"max_kl": -1.0}, "max_kl is -1.0, must be a number above 0"),
        ({"metric": "kl", "window": 1}, "window is 1, must be at least 2"),
        ({"metric": "kl", "tokens": 2.5}, "tokens is 2.5, must be a whole number"),
    ],
)
def test_settings_that_do_not_go_together(settings, message):
    with pytest.raises(UsageError, match=message):
        Recipe(scheme="int8-static", **settings)


def test_a_metric_without_a_text_is_refused_before_the_model_is_read(run):
    np.savez("data.npz", x=np.zeros(3))
    code, _, err = run("optimize", "a.onnx", *CALIBRATED[:2], "--calibration", "data.npz", "--metric", "kl")
    assert code == 2
    assert "kl needs a text: give --text, or a text as --calibration" in err
