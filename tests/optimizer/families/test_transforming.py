"""Scales of inputs folded before weights are rounded: what is won, what is left, and the same bytes again."""

from __future__ import annotations

from pathlib import Path

import graphs
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.errors import UsageError
from onnxpress.optimizer.families.weight_only import transforming
from onnxpress.optimizer.passes.fold_scales import Foldable
from onnxpress.optimizer.runtime.session import open_session, session_options

K = 64


def weight(seed, *shape):
    return (np.random.default_rng(seed).standard_normal(shape) / 8).astype(np.float32)


def network(path, seed=0):
    """A norm with channels of outliers -> gate and up -> down, a residual that another norm makes, a last product."""
    b = graphs.Builder()
    x = b.input("x", [None, 6, K])
    gamma = np.random.default_rng(5).uniform(0.5, 1.5, K).astype(np.float32)
    gamma[[3, 30, 41]] = [40, 60, 25]
    y = b.op("LayerNormalization", x, b.constant("gamma", gamma), name="norm", axis=-1)
    act = b.op("MatMul", y, b.constant("w_gate", weight(seed + 1, K, 96)), name="gate")
    up = b.op("MatMul", y, b.constant("w_up", weight(seed + 2, K, 96)), name="up")
    h = b.op("Mul", b.op("Mul", act, b.op("Sigmoid", act)), up, name="gated")
    down = b.op("MatMul", h, b.constant("w_down", weight(seed + 3, 96, K)), name="down")
    z = b.op("LayerNormalization", down, b.constant("ones", np.ones(K, np.float32)), name="second", axis=-1)
    last = b.op("MatMul", z, b.constant("w_last", weight(seed + 4, K, K)), name="last")
    b.output(b.op("Add", last, z, name="residual"), [None, 6, K])
    ir.save(b.model(), path)
    return path


def rows(seed=1, count=6):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((8, 6, K)).astype(np.float32)} for _ in range(count)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return network(tmp_path_factory.mktemp("transforming") / "m.onnx")


def convert(path, output, folder=None, progress=lambda *_: None, data=None, **settings):
    calibration = Calibration(data or rows(), checkpoint=folder)
    recipe = Recipe(**{"scheme": "int3", "accuracy_level": 0, **settings})
    return optimize(path, recipe, output, calibration=calibration, progress=progress)


def noise(path, reference, inner="down_out"):
    """Decibels that a product loses, on other data."""
    found = []
    for each in (path, reference):
        proto = onnx.load(each)
        proto.graph.output.append(onnx.ValueInfoProto(name=inner))
        session = open_session(proto.SerializeToString(), session_options(ours=True))
        found.append(np.concatenate([session.run([inner], feeds)[0] for feeds in rows(9)]))
    return 10 * np.log10(np.square(found[0] - found[1]).sum() / np.square(found[1]).sum())


@pytest.mark.parametrize("transform", ["awq", "smoothquant", "teq"])
def test_rounding_to_nearest_gains(path, tmp_path, transform):
    plain = optimize(path, Recipe(scheme="int3", accuracy_level=0), tmp_path / "plain.onnx")
    report = convert(path, tmp_path / "out.onnx", method="rtn", transform=transform)
    assert noise(report.output, path) < noise(plain.output, path) - 4
    tried = report.details["transform"]["inputs"]
    assert {name for name, each in tried.items() if each["folded"]} >= {"norm_out"}
    assert all((each["cost"] < each["plain"]) == each["folded"] for each in tried.values())
    _, line = next(row for row in report.rows if row[0] == "transformed")
    assert f"of 2 inputs by {transform}: rounding to nearest would lose" in line
    assert report.passes["FoldScales"]["last"] == "others read the tensor too"
    assert len(onnx.load(report.output).graph.node) == len(onnx.load(plain.output).graph.node)


def test_methods_gain_too(path, tmp_path):
    plain = convert(path, tmp_path / "plain.onnx", method="gptq")
    report = convert(path, tmp_path / "out.onnx", method="gptq", transform="teq")
    assert noise(report.output, path) < noise(plain.output, path) - 0.5
    assert report.recipe["method"] == "gptq"
    assert report.details["rounded"].keys() == plain.details["rounded"].keys()


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_the_recipe_gives_the_same_bytes(path, tmp_path, method):
    report = convert(path, tmp_path / "out.onnx", method=method, transform="awq")
    first = Path(report.output).read_bytes()
    again = Recipe.from_mapping(report.recipe)
    assert again.transform == "awq"
    optimize(path, again, tmp_path / "again.onnx", calibration=Calibration(rows()))
    assert (tmp_path / "again.onnx").read_bytes() == first


class InterruptionError(Exception):
    """Stands for a process that ends."""


@pytest.mark.parametrize(("stage", "done"), [("transform", 1), ("round", 2)])
def test_an_interrupted_conversion_goes_on_to_the_same_bytes(path, tmp_path, monkeypatch, stage, done):
    def interrupt(at, so_far, _total):
        if (at, so_far) == (stage, done):
            raise InterruptionError

    folder = tmp_path / "kept"
    with pytest.raises(InterruptionError):
        convert(path, tmp_path / "out.onnx", folder, interrupt, transform="awq")
    searched = []
    run = transforming._Search.run
    monkeypatch.setattr(
        transforming._Search, "run", lambda self, *given: searched.append(self.name) or run(self, *given)
    )
    went_on = convert(path, tmp_path / "out.onnx", folder, transform="awq")
    assert searched == (["gated_out"] if stage == "transform" else [])
    assert {each.name for each in folder.iterdir()} == {"transform", "rounded"}
    made = Path(went_on.output).read_bytes()
    assert Path(convert(path, tmp_path / "new.onnx", transform="awq").output).read_bytes() == made
    with pytest.raises(UsageError, match="another model, other settings or other data"):
        convert(path, tmp_path / "out.onnx", folder, transform="smoothquant")


@pytest.mark.parametrize("broken", ["norm_out", "gated_out"])
def test_a_fold_that_changes_the_model_is_taken_back(path, tmp_path, monkeypatch, broken):
    fold = Foldable.fold

    def half(self, scales):
        if self.name != broken:
            fold(self, scales)
            return
        for maker in self.makers:
            maker.multiply(1 / scales.astype(np.float64))

    plain = optimize(path, Recipe(scheme="int3", accuracy_level=0), tmp_path / "plain.onnx")
    monkeypatch.setattr(Foldable, "fold", half)
    report = convert(path, tmp_path / "out.onnx", method="rtn", transform="teq")
    node = {"norm_out": "up", "gated_out": "down"}[broken]
    tried = report.details["transform"]["inputs"]
    assert tried[broken]["cost"] < tried[broken]["plain"]
    assert [name for name, each in tried.items() if each["folded"]] == [name for name in tried if name != broken]
    assert report.passes["FoldScales"][node] == "the model computed otherwise with scales of its inputs"
    assert noise(report.output, path) < noise(plain.output, path) + 0.2


def test_what_differs_is_found(path):
    """Where up is a reader of one tensor and a maker of another, too."""
    one, other = ir.load(path), ir.load(path)
    checks = [
        transforming.Check("up", "up_out", "norm_out", "gated_out"),
        transforming.Check("down", "down_out", "gated_out", ""),
    ]
    scales = {"norm_out": np.full(K, 4, np.float32), "gated_out": np.full(96, 2, np.float32)}

    def differing(model, sizes=scales):
        return transforming.differing(one, model, checks, sizes, rows(1, 1))

    def multiply(name, factor):
        value = other.graph.initializers[name]
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(factor), name=name)

    for name, factor in (("gamma", 1 / 4), ("w_gate", 4), ("w_up", 2), ("w_down", 2)):
        multiply(name, factor)
    assert differing(other) is None
    multiply("w_down", 2)
    assert differing(other) == ["gated_out"]
    multiply("w_up", 2)
    assert differing(other) == ["norm_out"]
    assert differing(other, {"gated_out": scales["gated_out"]}) == ["gated_out"]
    multiply("w_up", 1 / 2)
    multiply("w_down", 1 / 2)
    multiply("w_last", 2)
    assert differing(other) == ["norm_out", "gated_out"]


def test_nothing_to_fold(tmp_path):
    b = graphs.Builder()
    h = b.op("Tanh", b.op("MatMul", b.input("x", [None, 6, K]), b.constant("w", weight(1, K, K)), name="product"))
    b.output(h, [None, 6, K])
    ir.save(b.model(), tmp_path / "m.onnx")
    report = convert(tmp_path / "m.onnx", tmp_path / "out.onnx", transform="teq")
    assert report.passes["FoldScales"] == {"product": "the tensor is no result of a node"}
    assert ("transformed", "0 of 0 inputs by teq") in report.rows


def test_what_is_refused(path, tmp_path):
    with pytest.raises(UsageError, match="has to see data"):
        optimize(path, Recipe(transform="awq"), tmp_path / "out.onnx")
    with pytest.raises(UsageError, match="transform: not read by scheme int8-static"):
        Recipe(scheme="int8-static", transform="awq")
    with pytest.raises(UsageError, match='transform is "awk"'):
        Recipe(transform="awk")


def metric_of(path):
    def metric(session):
        feeds = rows(9, 2)
        wanted = [open_session(path, session_options()).run(None, feed)[0] for feed in feeds]
        got = [session.run(None, feed)[0] for feed in feeds]
        return 1 - np.sqrt(np.square(np.subtract(got, wanted)).sum() / np.square(wanted).sum())

    return metric


def test_the_search_for_a_recipe_tries_it(path, tmp_path):
    settings = {"metric": metric_of(path), "check": False}
    trail = convert(path, tmp_path / "out.onnx", max_drop=1e-6, **settings).trail
    assert [each.recipe for each in trail[:3]] == ["int3 by rtn", "int3 by qronos", "int3 by qronos with smoothquant"]
    losses = [each.loss for each in trail[:3]]
    assert losses[2] < losses[1] < losses[0]
    report = convert(path, tmp_path / "out.onnx", max_drop=(losses[1] + losses[2]) / 2, **settings)
    assert len(report.trail) == 3
    assert report.recipe["transform"] == "smoothquant"
    assert report.details["metric"]["int3"] == pytest.approx(1 - losses[2])
    assert report.details["transform"]["name"] == "smoothquant"
    optimize(path, Recipe.from_mapping(report.recipe), tmp_path / "again.onnx", calibration=Calibration(rows()))
    assert (tmp_path / "again.onnx").read_bytes() == Path(report.output).read_bytes()
    report = convert(path, tmp_path / "out.onnx", max_drop=(losses[0] + losses[1]) / 2, **settings)
    assert "transform" not in report.recipe


def test_more_bits_come_on_top_of_a_transform_that_is_asked_for(path, tmp_path):
    settings = {"metric": metric_of(path), "check": False, "transform": "teq", "method": "rtn"}
    trail = convert(path, tmp_path / "out.onnx", max_drop=1e-6, **settings).trail
    assert trail[0].recipe == "int3 by rtn with teq"
    eight = next(each for each in trail if each.recipe == "int3, 4 of 4 weights in 8 bits")
    report = convert(path, tmp_path / "out.onnx", max_drop=(trail[0].loss + eight.loss) / 2, **settings)
    assert report.recipe["transform"] == "teq"
    assert report.recipe["overrides"]
    optimize(path, Recipe.from_mapping(report.recipe), tmp_path / "again.onnx", calibration=Calibration(rows()))
    assert (tmp_path / "again.onnx").read_bytes() == Path(report.output).read_bytes()


@pytest.mark.parametrize("name", ["awq", "smoothquant"])
def test_padding_moves_no_scale(tmp_path, name):
    """Neither by mean squares nor by the largest magnitudes."""
    b = graphs.Builder(18)
    x = b.input("x", [None, None, 64])
    b.input("attention_mask", [None, None], ir.DataType.INT64)
    gain = b.constant("gain", np.geomspace(0.1, 30, 64).astype(np.float32))
    h = b.op("Mul", x, gain, name="scale")
    b.output(b.op("MatMul", h, b.constant("W", graphs.weight(64, 64, 0)), name="layer"), [None, None, 64])
    ir.save(b.model(), tmp_path / "m.onnx")
    rng = np.random.default_rng(2)
    tokens = rng.standard_normal((16, 5, 64)).astype(np.float32)
    padding = (100 * rng.standard_normal((16, 3, 64))).astype(np.float32)
    padding[..., ::2] = 0
    mask = np.repeat([[1, 0]], [5, 3], axis=1) * np.ones((16, 1), np.int64)

    def converted(x, mask):
        data = Calibration([{"x": x[i : i + 4], "attention_mask": mask[i : i + 4]} for i in range(0, 16, 4)])
        recipe = Recipe(scheme="int2", transform=name, method="rtn", accuracy_level=0, check=False)
        report = optimize(tmp_path / "m.onnx", recipe, tmp_path / "out.onnx", calibration=data)
        return (tmp_path / "out.onnx").read_bytes(), report.details["transform"]

    bare, found = converted(tokens, mask[:, :5])
    assert any(each["folded"] for each in found["inputs"].values())
    assert converted(np.concatenate([tokens, padding], 1), mask)[0] == bare
