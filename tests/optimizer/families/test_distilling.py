"""Scales trained on the outputs of the whole model: `--method dwq`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import decoders
import graphs
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from command_line import runner
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.errors import OnnxpressError, UsageError
from onnxpress.optimizer.families.weight_only.training import Setup

WIDTH = 48


def needs_torch():
    pytest.importorskip("torch")


def windows(seed=1, count=10, length=16):
    """Of a decoder without a past."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        ids = rng.integers(0, decoders.VOCABULARY, (1, length))
        yield {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(length)[None]}


def network(path, width=WIDTH, op_type="Tanh"):
    b = graphs.Builder(18)
    h = b.input("x", [None, width])
    for index in range(3):
        h = b.op(
            op_type, b.op("MatMul", h, b.constant(f"W{index}", graphs.weight(width, width, index)), name=f"p{index}")
        )
    b.output(h, [None, width])
    ir.save(b.model(), path)
    return path


def rows(seed=1, count=8):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((40, WIDTH)).astype(np.float32)} for _ in range(count)]


def convert(path, data, name="out.onnx", checkpoint=None, progress=lambda *_: None, **settings):
    recipe = Recipe(
        **{"scheme": "int2", "method": "dwq", "steps": 60, "accuracy_level": 0, "block_size": 16, **settings}
    )
    calibration = Calibration(data, checkpoint=checkpoint)
    return optimize(path, recipe, path.with_name(name), calibration=calibration, progress=progress)


def outputs(path, data):
    session = ort.InferenceSession(path)
    names = {each.name for each in session.get_inputs()}
    return [session.run(None, {key: each[key] for key in names})[0] for each in data]


def nats(reference, found):
    def logs(x):
        x = x.astype(np.float64)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    return np.mean(
        [(np.exp(logs(a)) * (logs(a) - logs(b))).sum(-1).mean() for a, b in zip(reference, found, strict=True)]
    )


def test_a_decoder_predicts_more_like_the_float_model(tmp_path):
    needs_torch()
    path = tmp_path / "m.onnx"
    ir.save(decoders.decoder(past=None, mask="sequence"), path)
    report = convert(path, lambda: windows(count=24), method="gptq,dwq", learning_rate=0.01)
    convert(path, lambda: windows(count=24), "start.onnx", method="gptq", steps=None)
    trained = report.details["trained"][0]
    assert trained["steps"] == 60
    assert trained["lost"] < 0.8 * trained["start"]
    assert trained["unit"] == "nats per token"
    others = list(windows(seed=9))
    reference = outputs(path, others)
    lost, before = (nats(reference, outputs(tmp_path / name, others)) for name in ("out.onnx", "start.onnx"))
    assert lost < 0.9 * before
    told = dict(report.rows)["trained"]
    assert "by dwq, 60 steps: lost" in told
    assert "nats per token" in told
    assert all(each["method"] in ("gptq+dwq", "rtn+dwq") for each in report.details["rounded"].values())


def test_what_it_says_of_data_kept_apart_is_so(tmp_path):
    needs_torch()
    path = network(tmp_path / "m.onnx")
    report = convert(path, rows())
    trained = report.details["trained"][0]
    (apart,) = rows()[:1]
    wanted, found = outputs(path, [apart])[0], outputs(tmp_path / "out.onnx", [apart])[0]
    lost = np.square(found - wanted).sum() / np.square(wanted).sum()
    assert trained["lost"] == pytest.approx(lost, rel=1e-3)
    assert trained["lost"] < trained["start"]


@pytest.mark.parametrize("scheme", ["int3", "fp4"])
def test_errors_of_weights_are_those_of_the_trained_scales(tmp_path, scheme):
    needs_torch()
    b = graphs.Builder(18)
    matrix = graphs.weight(WIDTH, WIDTH)
    b.output(b.op("MatMul", b.input("x", [None, WIDTH]), b.constant("W", matrix)), [None, WIDTH])
    path = tmp_path / "m.onnx"
    ir.save(b.model(), path)
    (told,) = convert(path, rows(), scheme=scheme, learning_rate=0.01).weights
    assert told.method in ("qronos+dwq", "rtn+dwq")
    found = outputs(tmp_path / "out.onnx", [{"x": np.eye(WIDTH, dtype=np.float32)}])[0]
    sqnr = 10 * np.log10(np.square(matrix).sum() / np.square(found - matrix).sum())
    assert told.sqnr == pytest.approx(sqnr, abs=1e-3)


@pytest.mark.parametrize("scheme", ["int3", "fp4"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_gemm_with_factors(tmp_path, scheme, dtype):
    """Scales take the factor of integers in, other weights are rounded with it; float16 is trained in float32."""
    needs_torch()
    b = graphs.Builder(18)
    x = b.input("x", [None, WIDTH], ir.DataType.from_numpy(np.dtype(dtype)))
    weight, bias = b.constant("W", graphs.weight(32, WIDTH, dtype=dtype)), b.constant("b", np.ones(32, dtype))
    b.output(b.op("Gemm", x, weight, bias, alpha=3.0, transB=1), [None, 32], x.dtype)
    path = tmp_path / "m.onnx"
    ir.save(b.model(), path)
    data = [{"x": each["x"].astype(dtype)} for each in rows()]
    trained = convert(path, data, scheme=scheme).details["trained"][0]
    wanted, found = (outputs(file, data[:1])[0].astype(np.float64) for file in (path, tmp_path / "out.onnx"))
    lost = np.square(found - wanted).sum() / np.square(wanted).sum()
    assert trained["lost"] == pytest.approx(lost, rel=1e-3 if dtype == np.float32 else 0.05)
    assert trained["lost"] < trained["start"]


@pytest.mark.parametrize("settings", [
    {"scheme": "fp4"}, {"scheme": "int4", "symmetric": True, "scale_type": "float16"}, {"method": "rtn,dwq"},
    {"form": "qdq", "scheme": "int4"}, {"sequential": False},
])  # fmt: skip
def test_of_other_formats(tmp_path, settings):
    needs_torch()
    report = convert(network(tmp_path / "m.onnx"), rows(), **settings)
    trained = report.details["trained"][0]
    assert trained["lost"] < trained["start"]


def test_the_same_bytes_again_and_after_an_interruption(tmp_path):
    needs_torch()
    path = network(tmp_path / "m.onnx")

    class InterruptionError(Exception):
        pass

    def interrupt(stage, done, _total):
        if stage == "dwq" and done == 20:
            raise InterruptionError

    convert(path, rows(), "a.onnx")
    with pytest.raises(InterruptionError):
        convert(path, rows(), "b.onnx", tmp_path / "kept", interrupt)
    told = []
    convert(path, rows(), "b.onnx", tmp_path / "kept", lambda stage, done, _total: told.append((stage, done)))
    assert min(done for stage, done in told if stage == "dwq") == 18  # judged every 6 steps
    assert Path(tmp_path / "a.onnx").read_bytes() == Path(tmp_path / "b.onnx").read_bytes()
    with pytest.raises(UsageError, match="another model, other settings or other data"):
        convert(path, rows(), "b.onnx", tmp_path / "kept", steps=61)


def test_which_tokens_count():
    needs_torch()
    seen = np.array([[1, 1, 1, 0], [1, 0, 0, 0]])
    ids = np.zeros((2, 3), np.int64)
    setup = object.__new__(Setup)
    setup.batches = [{"x": ids}, {"attention_mask": seen}, {"attention_mask": seen, "input_ids": ids}]
    assert setup.mask(0) is None
    assert setup.mask(1).tolist() == (seen != 0).tolist()
    assert setup.mask(2).tolist() == (seen[:, 1:] != 0).tolist()  # behind a past


def test_search_time_ends_it(tmp_path):
    needs_torch()
    report = convert(network(tmp_path / "m.onnx"), rows(), search_time="1s", steps=100_000)
    assert 0 < report.details["trained"][0]["steps"] < 100_000


def test_no_floats_to_compare(tmp_path):
    needs_torch()
    b = graphs.Builder(18)
    product = b.op("MatMul", b.input("x", [None, WIDTH]), b.constant("W", graphs.weight(WIDTH, WIDTH)))
    b.output(b.op("ArgMax", product, axis=1), [None, 1], ir.DataType.INT64)
    ir.save(b.model(), tmp_path / "m.onnx")
    with pytest.raises(OnnxpressError, match="no output of the model is of floats"):
        convert(tmp_path / "m.onnx", rows())


def test_one_batch_is_too_few(tmp_path):
    needs_torch()
    with pytest.raises(UsageError, match="holds one batch, and dwq needs two"):
        convert(network(tmp_path / "m.onnx"), rows(count=1))


def test_unknown_operators_are_named_before_anything_is_rounded(tmp_path):
    needs_torch()
    stages = set()
    with pytest.raises(OnnxpressError, match="no gradients are known of Atan"):
        convert(network(tmp_path / "m.onnx", op_type="Atan"), rows(), progress=lambda stage, *_: stages.add(stage))
    assert "round" not in stages


def test_without_torch(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest))
    path = network(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=r"method dwq needs the package torch: pip install \"onnxpress\[torch\]\""):
        convert(path, rows())
    np.savez(tmp_path / "x.npz", x=rows()[0]["x"])
    call = runner(monkeypatch, capsys)
    code, _, told = call("optimize", str(path), "--method", "dwq", "--calibration", str(tmp_path / "x.npz"))
    assert code == 2
    assert "onnxpress[torch]" in told
