"""Rounding of all weights of a block trained together: `--method signround-blocks`."""

from __future__ import annotations

import decoders
import graphs
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.quantization.rtn import quantize_rtn
from onnxpress.optimizer.quantization.schemes import weight_scheme

pytest.importorskip("torch")

WIDTH = 48


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("onnxpress.optimizer.gradients.graph._PRODUCTS", 2)


def network(path, layers=4):
    b = graphs.Builder(18)
    h = b.input("x", [None, WIDTH])
    for index in range(layers):
        y = b.op("MatMul", h, b.constant(f"W{index}", graphs.weight(WIDTH, WIDTH, index)), name=f"p{index}")
        h = b.op("Add", h, b.op("Tanh", y))
    b.output(h, [None, WIDTH])
    ir.save(b.model(), path)
    return path


def rows(seed=1, count=8):
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(7).standard_normal((WIDTH, WIDTH)) / 5
    return [{"x": (rng.standard_normal((40, WIDTH)) @ mix).astype(np.float32)} for _ in range(count)]


def convert(path, data, name="out.onnx", checkpoint=None, progress=lambda *_: None, **settings):
    given = {"scheme": "int2", "method": "gptq,signround-blocks", "steps": 60, "accuracy_level": 0, "block_size": 16}
    calibration = Calibration(data, checkpoint=checkpoint)
    recipe = Recipe(**{**given, **settings})
    return optimize(path, recipe, path.with_name(name), calibration=calibration, progress=progress)


def outputs(path, data):
    return [ort.InferenceSession(path).run(None, each)[0] for each in data]


def lost(path, other, data):
    wanted, found = (np.concatenate(outputs(each, data)).astype(np.float64) for each in (path, other))
    return np.square(found - wanted).sum() / np.square(wanted).sum()


@pytest.mark.parametrize("settings", [
    {}, {"scheme": "int3"}, {"scheme": "int3", "symmetric": True}, {"scheme": "int3", "scale_type": "float16"},
    {"method": "search,signround-blocks"}, {"method": "gptq,search,signround-blocks"},
])  # fmt: skip
def test_blocks_lose_less(tmp_path, settings):
    path = network(tmp_path / "m.onnx")
    report = convert(path, rows(count=24), **settings)
    (trained,) = report.details["trained"]
    assert trained["lost"] < trained["start"]
    assert "2 blocks" in trained["unit"]
    before = settings.get("method", "gptq").split(",")[0]
    convert(path, rows(count=24), "start.onnx", **{**settings, "method": before, "steps": None})
    others = rows(9)
    assert lost(path, tmp_path / "out.onnx", others) < lost(path, tmp_path / "start.onnx", others)


def test_the_last_block_ends_with_the_outputs(tmp_path, monkeypatch):
    """Of one block the loss is that of the model on data kept apart."""
    monkeypatch.setattr("onnxpress.optimizer.gradients.graph._PRODUCTS", 100)
    path = network(tmp_path / "m.onnx")
    (trained,) = convert(path, rows()).details["trained"]
    assert trained["lost"] == pytest.approx(lost(path, tmp_path / "out.onnx", rows()[:1]), rel=1e-3)
    assert trained["lost"] < trained["start"]


def test_what_is_no_better_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("onnxpress.optimizer.gradients.descent.SignDescent._direction", lambda *_: 1e6)
    path = network(tmp_path / "m.onnx")
    report = convert(path, rows())
    (trained,) = report.details["trained"]
    assert trained["lost"] == trained["start"]
    assert all("+" not in each["method"] for each in report.details["rounded"].values())
    convert(path, rows(), "start.onnx", method="gptq", steps=None)
    np.testing.assert_array_equal(*(outputs(tmp_path / name, rows())[0] for name in ("out.onnx", "start.onnx")))


def test_what_is_no_integer_stays_and_is_passed_through(tmp_path):
    path = network(tmp_path / "m.onnx")
    report = convert(path, rows(), scheme="nf4")
    assert report.details["trained"][0]["unit"].startswith("of the squares of what 0 blocks make")
    convert(path, rows(), "start.onnx", scheme="nf4", method="gptq", steps=None)


def test_large_weights_stay_beside_those_that_are_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("onnxpress.optimizer.families.weight_only.block_training._MOST", WIDTH * WIDTH)
    b = graphs.Builder(18)
    h = b.op("Tanh", b.op("MatMul", b.input("x", [None, WIDTH]), b.constant("A", graphs.weight(WIDTH, WIDTH))))
    b.output(b.op("MatMul", h, b.constant("B", graphs.weight(WIDTH, 2 * WIDTH, 1))), [None, 2 * WIDTH])
    path = tmp_path / "m.onnx"
    ir.save(b.model(), path)
    report = convert(path, rows())
    methods = {name: each["method"] for name, each in report.details["rounded"].items()}
    assert "+signround-blocks" in methods["A"]
    assert "+" not in methods["B"]
    (trained,) = report.details["trained"]
    assert trained["lost"] == pytest.approx(lost(path, tmp_path / "out.onnx", rows()[:1]), rel=1e-3)


def test_search_time_ends_it(tmp_path):
    path, told = network(tmp_path / "m.onnx"), []
    report = convert(path, rows(), search_time="1s", steps=100_000, progress=lambda stage, *_: told.append(stage))
    (trained,) = report.details["trained"]
    assert trained["lost"] <= trained["start"]
    assert "signround-blocks" in told


def test_scales_can_be_trained_behind_it(tmp_path):
    path = network(tmp_path / "m.onnx")
    blocks, whole = convert(path, rows(), method="signround-blocks,dwq").details["trained"]
    assert (blocks["method"], whole["method"]) == ("signround-blocks", "dwq")
    assert whole["lost"] < whole["start"]


def test_a_decoder(tmp_path):
    """Its mask holds numbers that no weight reaches."""
    path = tmp_path / "m.onnx"
    ir.save(decoders.decoder(past=None, mask="sequence"), path)
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, decoders.VOCABULARY, (1, 16)) for _ in range(10)]
    data = [{"input_ids": e, "attention_mask": np.ones_like(e), "position_ids": np.arange(16)[None]} for e in ids]
    (trained,) = convert(path, data).details["trained"]
    assert trained["lost"] < trained["start"]


def test_the_same_bytes_again_and_after_an_interruption(tmp_path):
    path = network(tmp_path / "m.onnx")

    class InterruptionError(Exception):
        pass

    def interrupt(stage, done, _total):
        if stage == "signround-blocks" and done == 1:
            raise InterruptionError

    convert(path, rows(), "a.onnx")
    with pytest.raises(InterruptionError):
        convert(path, rows(), "b.onnx", tmp_path / "kept", interrupt)
    assert (tmp_path / "kept" / "block0.npz").is_file()
    first = (tmp_path / "kept" / "block0-0.npz").stat().st_mtime_ns
    report = convert(path, rows(), "b.onnx", tmp_path / "kept")
    assert (tmp_path / "kept" / "block0-0.npz").stat().st_mtime_ns == first
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert report.details["trained"][0]["lost"] < report.details["trained"][0]["start"]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("scale_type", ["float32", "float16"])
def test_it_begins_with_the_codes_that_there_are(symmetric, scale_type):
    import torch
    from onnxpress.optimizer.gradients.offsets import OffsetWeight

    given = np.random.default_rng(0).standard_normal((6, 40)).astype(np.float32)
    start = quantize_rtn(given, weight_scheme("int3", 16, symmetric, True, scale_type, True), True)
    others = np.random.default_rng(1).standard_normal((6, 40)).astype(np.float32)  # whose codes are others
    for rows in (given, others):
        weight = OffsetWeight(start, rows, 2.0)
        np.testing.assert_allclose(weight.rows().detach() * 2, start.rows(), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(weight.result().packed, start.packed)
    with torch.no_grad():
        for parameter in weight.parameters:
            parameter += 0.3 * torch.from_numpy(np.random.default_rng(2).standard_normal(parameter.shape)).float()
    np.testing.assert_allclose(weight.rows().detach() * 2, weight.result().rows(), rtol=1e-5, atol=1e-6)
    assert not np.array_equal(weight.result().packed, start.packed)
