"""A search of lengths that was interrupted goes on to the same bytes, with what it had measured."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from encoder_layers import HIDDEN, LayerModel
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.analysis.length_study import study_lengths
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.errors import OnnxpressError, UsageError
from onnxpress.optimizer.families import length_search
from onnxpress.optimizer.families.length_measures import Measures

CASE = LayerModel(layers=3)
FEEDS = CASE.feeds((30, 25))
SECONDS = (4.0, 3.25, 2.5, 2.05, 1.75, 1.45, 1.15)


class Likeness:
    """Cosine of the first token with what the float model gave, which is asked first; counts how often it is asked."""

    __module__, __qualname__ = "likeness", "of_first_token"

    def __init__(self):
        self.asked, self.want = 0, None

    def __call__(self, session):
        self.asked += 1
        y = session.run(None, FEEDS)[0][:, 0].reshape(-1)
        self.want = y if self.want is None else self.want
        return float(y @ self.want / np.linalg.norm(y) / np.linalg.norm(self.want))


class InterruptionError(Exception):
    """Stands for a process that ends."""


def after(count):
    def progress(stage, done, _total):
        if stage == "search lengths" and done == count:
            raise InterruptionError

    return progress


def settings(**recipe):
    return Recipe(**{"scheme": "int8-dynamic", "lengths": "search", "max_drop": 0.01, **recipe})


def searched(tmp_path, folder, model=None, progress=lambda *_: None, **recipe):
    """How often the metric was asked, the report and the file."""
    metric = Likeness()
    report = optimize(
        model or CASE.model(), settings(metric=metric, **recipe), tmp_path / "out.onnx",
        calibration=Calibration(checkpoint=folder), progress=progress,
    )  # fmt: skip
    return metric.asked, report, (tmp_path / "out.onnx").read_bytes()


@pytest.fixture(autouse=True)
def timed(monkeypatch):
    """Each timing finds layers quicker by another half, so that a second one would lead elsewhere."""
    took = []

    def times(_session, feeds, _layers):
        took.append(0.5 ** len(took) if feeds else np.nan)
        return [second if index == 0 else second * took[-1] for index, second in enumerate(SECONDS)]

    monkeypatch.setattr(length_search, "_timed", times)
    return took


@pytest.fixture
def interrupted(tmp_path):
    """The folder that ten judged lengths are in."""
    with pytest.raises(InterruptionError):
        searched(tmp_path, tmp_path / "kept", progress=after(10))
    return tmp_path / "kept"


def test_it_goes_on_to_the_same_bytes(interrupted, tmp_path, timed):
    assert len(list(interrupted.glob("*.npz"))) == 10
    asked, report, went_on = searched(tmp_path, interrupted)
    assert timed == [1.0]
    timed.clear()
    whole, alone, expected = searched(tmp_path, None)
    assert went_on == expected
    assert asked == whole - 10
    assert [(each.recipe, each.value) for each in report.trail] == [(each.recipe, each.value) for each in alone.trail]
    assert report.details["length_search"] == alone.details["length_search"]
    asked, _, again = searched(tmp_path, interrupted)
    assert (asked, again) == (1, expected)  # of the float model alone
    timed.append(1.0)
    assert searched(tmp_path, None)[1].details["length_search"] != alone.details["length_search"]


def test_interrupted_before_the_first_is_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(length_search, "_judge", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        searched(tmp_path, tmp_path / "kept")
    monkeypatch.undo()
    assert [each.name for each in (tmp_path / "kept").iterdir()] == ["run.json"]
    monkeypatch.setattr(length_search, "_timed", lambda *_: [*SECONDS])
    assert searched(tmp_path, tmp_path / "kept")[2] == searched(tmp_path, None)[2]


@pytest.mark.parametrize(
    "other",
    [
        {"max_drop": 0.02}, {"fuse_layers": True}, {"exclude": ("layer.1/*",)}, {"metric": "lee"},
        {"model": LayerModel(layers=3, norm_first=True).model()},
        {"model": LayerModel(layers=3, activation="relu").model()},
    ],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_of_another_run(interrupted, other, tmp_path):
    model, recipe = other.get("model"), {key: value for key, value in other.items() if key != "model"}
    recipe = settings(**{"metric": Likeness(), **recipe})
    with pytest.raises(UsageError, match=r"kept: holds what a run with another model, other settings or other data"):
        optimize(model or CASE.model(), recipe, tmp_path / "out.onnx", calibration=Calibration(checkpoint=interrupted))
    assert not (tmp_path / "out.onnx").exists()


def test_of_other_weights(interrupted, tmp_path):
    model = CASE.model()
    value = next(value for value in model.graph.initializers.values() if value.shape == ir.Shape([HIDDEN, HIDDEN]))
    value.const_value = ir.tensor(value.const_value.numpy() + np.float32(1e-3), name=value.name)
    with pytest.raises(UsageError, match="another model"):
        searched(tmp_path, interrupted, model)


def test_of_another_text(tmp_path):
    """The text is known by what it holds, wherever it lies."""
    text, other = tmp_path / "a.txt", tmp_path / "b.txt"
    text.write_text("one\n")
    other.write_text("one\n")

    def begin(path):
        from onnxpress.optimizer.evaluation.texts import Text, TextMetric

        bound = settings(metric="embeddings", text=str(path)).decided(metric=TextMetric("embeddings", Text(path)))
        return Measures(tmp_path / "kept", CASE.model(), bound)

    begin(text)
    begin(other)
    other.write_text("two\n")
    with pytest.raises(UsageError, match="other data"):
        begin(other)


@pytest.mark.parametrize("damage", ["cut", "bit", "array", "empty"])
def test_damaged_files(interrupted, damage, tmp_path):
    path = interrupted / "lengths 4.npz"
    whole = path.read_bytes()
    if damage == "array":
        with path.open("wb") as file:
            np.save(file, np.arange(3))
    else:
        at = whole.index(b"NUMPY") + 150
        path.write_bytes({"cut": whole[:-9], "bit": whole[:at] + b"?" + whole[at + 1 :], "empty": b""}[damage])
    with pytest.raises(OnnxpressError, match=r"lengths 4.npz: holds nothing that a run left; delete the folder"):
        searched(tmp_path, interrupted)


def test_half_written_files_are_measured_again(interrupted, tmp_path):
    path = interrupted / "lengths 9.npz"
    path.with_suffix(".part").write_bytes(path.read_bytes()[:50])
    path.unlink()
    asked, _, went_on = searched(tmp_path, interrupted)
    whole, _, expected = searched(tmp_path, interrupted)
    assert (went_on, whole) == (expected, 1)
    assert asked > 1


def test_a_run_that_ended_while_it_said_which_it_is(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "run.part").write_text("{")
    searched(tmp_path, tmp_path / "kept")
    assert json.loads((tmp_path / "kept" / "run.json").read_text())["settings"]["lengths"] == "search"


def test_what_gives_other_numbers_is_measured_again(tmp_path):
    measures = Measures(tmp_path / "kept", CASE.model(), settings(metric=Likeness()))
    assert measures.once("lengths 1", (0.5,), lambda: {"value": 1.0})["value"] == 1
    assert measures.once("lengths 1", (0.5,), lambda: {"value": 2.0})["value"] == 1
    assert measures.once("lengths 1", (0.4,), lambda: {"value": 3.0})["value"] == 3
    assert np.isnan(measures.once("lengths 2", (0.4,), lambda: {"value": np.nan})["value"])
    assert np.isnan(measures.once("lengths 2", (0.4,), dict)["value"])


def test_a_study_goes_on_too(tmp_path, timed):
    ir.save(CASE.model(), tmp_path / "m.onnx")

    def study(checkpoint, progress=lambda *_: None):
        recipe = settings(metric=Likeness(), max_drop=0.02)
        study_lengths(
            str(tmp_path / "m.onnx"), tmp_path / "f", recipe, [0.02, 0.01], checkpoint=checkpoint, progress=progress
        )
        return {path.name: path.read_bytes() for path in (tmp_path / "f").iterdir()}

    with pytest.raises(InterruptionError):
        study(tmp_path / "kept", after(7))
    assert len(list((tmp_path / "kept").glob("*.npz"))) == 7
    went_on = study(tmp_path / "kept")
    timed.clear()
    assert study(None) == went_on
    assert len(went_on) == 3


@pytest.mark.parametrize("lengths", [None, "0.9,0.8", "input"])
def test_nothing_to_go_on_with(lengths, tmp_path):
    recipe = Recipe(scheme="int8-dynamic", lengths=lengths)
    with pytest.raises(UsageError, match="checkpoint: scheme int8-dynamic does not go on after an interruption"):
        optimize(CASE.model(), recipe, tmp_path / "out.onnx", calibration=Calibration(checkpoint=tmp_path / "kept"))
    assert not (tmp_path / "kept").exists()
