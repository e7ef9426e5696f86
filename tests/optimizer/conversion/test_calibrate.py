"""The command `onnxpress calibrate`, and what it chooses to observe."""

from __future__ import annotations

import json

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress import models
from onnxpress.optimizer.calibration.ranges import METHODS, activation_range
from onnxpress.optimizer.calibration.source import tokenizer_beside
from onnxpress.optimizer.calibration.statistics import Statistics, StatisticsSpec
from onnxpress.optimizer.commands import app
from onnxpress.optimizer.commands import calibrate as commands_calibrate
from onnxpress.optimizer.conversion import calibrate as conversion_calibrate
from onnxpress.optimizer.conversion.calibrate import activations, calibrate, merge
from onnxpress.optimizer.errors import UsageError, command_line
from onnxpress.optimizer.model_io import storage
from onnxpress.optimizer.sources import resolve
from typer.testing import CliRunner


def run(*arguments):
    with command_line():
        return CliRunner().invoke(app.app, list(map(str, arguments)))


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    ir.save(graphs.matmul_model(64, 16, bias=True), path)
    return path


def data(path, seed, count=10):
    np.savez(path, x=np.random.default_rng(seed).standard_normal((count, 64)).astype(np.float32))
    return path


def test_machines_share_the_work(model, tmp_path):
    for seed in (0, 1):
        done = run("calibrate", model, "--data", data(tmp_path / f"d{seed}.npz", seed), "-o", tmp_path / f"{seed}.npz")
        assert done.exit_code == 0, done.output
        assert "2 tensors in 10 batches" in done.output
    done = run("calibrate", "--merge", tmp_path / "0.npz", tmp_path / "1.npz", "-o", tmp_path / "all.npz", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["tensors"], report["batches"], report["unusable"]) == (2, 20, {})
    merged = Statistics.load(tmp_path / "all.npz")
    merged.check(storage.load(model), ["x", "sum_out"])
    parts = [Statistics.load(tmp_path / f"{seed}.npz") for seed in (0, 1)]
    for name, tensor in merged.items():
        assert tensor.count == sum(part[name].count for part in parts)
        assert tensor.low == min(part[name].low for part in parts)


def test_options(model, tmp_path):
    given = data(tmp_path / "d.npz", 0)
    run("calibrate", model, "--data", given, "-o", tmp_path / "s.npz", "--samples", 7, "--batch", 2, "--gram", "-q")
    found = Statistics.load(tmp_path / "s.npz")
    assert (found["x"].rows, found["x"].batches, found["x"].gram.shape) == (7, 4, (64, 64))
    assert found["sum_out"].gram is None


def test_what_cannot_be_rounded_is_told(tmp_path):
    b = graphs.Builder()
    b.output(b.op("Log", b.input("x", ["batch", 64]), name="log"), ["batch", 64])
    ir.save(b.model(), tmp_path / "m.onnx")
    done = run("calibrate", tmp_path / "m.onnx", "--data", data(tmp_path / "d.npz", 0), "-o", tmp_path / "s.npz")
    assert "cannot be rounded: log_out: it holds NaN or infinity" in done.output


def test_data_that_never_changes_is_told(model, tmp_path):
    np.savez(tmp_path / "d.npz", x=np.ones((5, 64), np.float32))
    done = run("calibrate", model, "--data", tmp_path / "d.npz", "-o", tmp_path / "s.npz")
    assert "d.npz: input 'x' is 1 everywhere in all 5 samples" in " ".join(done.output.split())


def test_a_model_of_the_catalogue_brings_its_data(model, tmp_path, monkeypatch):
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    monkeypatch.setattr(conversion_calibrate, "resolve", lambda _model: model)
    monkeypatch.setattr(commands_calibrate, "check_there", lambda *_models: None)
    monkeypatch.setattr(models, "calibration", lambda name, samples: [{"x": x}] * samples if name == "known" else [])
    for more, batches in (((), 128), (("--samples", 3), 3)):
        done = run("calibrate", "known", "-o", tmp_path / "s.npz", *more)
        assert done.exit_code == 0, done.output
        assert f"in {batches} batches" in done.output
    error = run("calibrate", "empty", "-o", tmp_path / "s.npz").exception
    assert "empty's own data" in str(error) or "no samples" in str(error)


def test_the_tokenizer_beside_a_model_is_for_lines_of_text(tmp_path):
    model = tmp_path / "model.onnx"
    assert tokenizer_beside(model, "lines.txt") is None
    (tmp_path / "tokenizer.json").touch()
    assert tokenizer_beside(model, "lines.txt") == tmp_path / "tokenizer.json"
    assert tokenizer_beside(model, "data.npz") is tokenizer_beside(model, []) is tokenizer_beside(None, "a.txt") is None


def test_wrong_requests(model, tmp_path):
    out = ("-o", tmp_path / "s.npz")
    for arguments, message in (
        (("calibrate", model, *out), "--data is missing"),
        (("calibrate", model, model, "--data", "x", *out), "2 models given"),
        (("calibrate", "--merge", model, "--data", "x", *out), "leave --data out"),
        (("calibrate", "--merge", model, *out), "at least two files"),
        (("calibrate", model, "--data", model, *out), "give an .npz"),
        (("calibrate", "--merge", model, model.parent / "." / model.name, *out), "named twice"),
    ):
        error = run(*arguments).exception
        assert isinstance(error, UsageError), error
        assert message in str(error)
    assert not (tmp_path / "s.npz").exists()


def test_statistics_of_other_models_do_not_merge(model, tmp_path):
    ir.save(graphs.matmul_model(64, 16), tmp_path / "other.onnx")
    given = data(tmp_path / "d.npz", 0)
    for name in ("model", "other"):
        calibrate(tmp_path / f"{name}.onnx", given, tmp_path / f"{name}.npz")
    with pytest.raises(UsageError, match="different models"):
        merge([tmp_path / "model.npz", tmp_path / "other.npz"], tmp_path / "all.npz")


def test_activations_and_their_channels():
    b = graphs.Builder()
    x = b.input("x", ["batch", 3, 8, 8])
    W = graphs.weight(4, 27).reshape(4, 3, 3, 3)
    y = b.op("Relu", b.op("Conv", x, b.constant("W", W), name="conv"), name="relu")
    y = b.op("Flatten", b.op("GlobalAveragePool", y, name="pool"), name="flat")
    y = b.op("MatMul", y, b.constant("V", graphs.weight(4, 4)), name="product")
    ids = b.op("Shape", y, name="shape")
    y = b.op("MatMul", y, b.op("Reshape", y, ids, name="same"), name="inner")
    b.output(y, ["batch", "batch"])
    model = b.model()
    for node in model.graph:
        kind = ir.DataType.INT64 if node.name == "shape" else ir.DataType.FLOAT
        node.outputs[0].type = ir.TensorType(kind)
    assert activations(model, gram=True) == {
        "x": StatisticsSpec(channel_axis=1),
        "conv_out": StatisticsSpec(channel_axis=1),
        "relu_out": StatisticsSpec(),
        "pool_out": StatisticsSpec(),
        "flat_out": StatisticsSpec(channel_axis=-1, gram=True),
        "product_out": StatisticsSpec(channel_axis=-1),
        "same_out": StatisticsSpec(),
        "inner_out": StatisticsSpec(),
    }


def noise(*shape) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


REAL = {
    "resnet-nsfw": [noise(1, 224, 224, 3) * 50],
    "ppocr-rec": [noise(1, 3, 48, 160), noise(1, 3, 48, 320)],
    "silero-vad": [{"input": noise(1, 576), "state": noise(2, 1, 128), "sr": np.int64(16000)}],
}


@pytest.mark.real
@pytest.mark.parametrize("name", ["minilm", *REAL])
def test_real_models(name, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("A sentence of some words.\nAnother one.\n")
    report = calibrate(name, REAL.get(name, lines), tmp_path / "s.npz", gram=name == "minilm", length=16)
    assert report.batches == len(REAL.get(name, "12"))
    assert report.unusable == {}
    found = Statistics.load(tmp_path / "s.npz")
    found.check(storage.load(resolve(name)))
    for tensor in list(found.values())[::9]:
        for method in METHODS:
            low, high = activation_range(tensor, method)
            assert tensor.low <= low <= high <= tensor.high
