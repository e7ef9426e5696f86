"""Steps of preparation stay where they do no harm to the outputs on the calibration data."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
from graphs import Builder
from onnxpress.optimizer import Calibration, Recipe, optimize
from onnxpress.optimizer.evaluation.output_noise import OutputNoise
from onnxpress.optimizer.families.calibrated import int8_builder as int8_models
from onnxpress.optimizer.families.calibrated.builder import Calibrated
from onnxpress.optimizer.families.calibrated.trials import Trials
from onnxpress.optimizer.runtime.session import open_session, session_options

X = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
FEEDS = [{"x": X}, {"x": 2 * X}]


def scaled(factor: float) -> ir.Model:
    b = Builder(18)
    b.output(b.op("Mul", b.input("x", ["n", 8]), b.constant("k", np.float32(factor)), name="m"), ["n", 8])
    return b.model()


def test_noise_is_a_share_of_the_signal():
    noise = OutputNoise(scaled(1), FEEDS)
    assert noise(scaled(1)) == 0
    assert math.isclose(noise(scaled(1.1)), 0.01, rel_tol=1e-4)
    assert noise(scaled(math.nan)) == math.inf


def test_noise_of_other_outputs():
    def built(threshold, shape=(1,)):
        b = Builder(18)
        x = b.input("x", ["n", 8])
        above = b.op("Greater", x, b.constant("t", np.full(shape, threshold, np.float32)))
        both = b.op("SequenceConstruct", x, x)
        above.type, both.type = ir.TensorType(ir.DataType.BOOL), ir.SequenceType(ir.TensorType(ir.DataType.FLOAT))
        b.graph.outputs.extend([above, both])
        return b.model()

    noise = OutputNoise(built(0), FEEDS)
    assert noise(built(0)) == 0
    other = np.mean([np.mean((x["x"] > 0) != (x["x"] > 0.5)) for x in FEEDS])
    assert math.isclose(noise(built(0.5)), other / 2)
    assert noise(built(0, (1, 1, 1))) == math.inf


def trial(factors: dict[str, float], recipe: Recipe, moved: float | None = None):
    """What becomes of a recipe where each step multiplies what is wrong with the outputs by a factor."""

    def make(stage: Calibrated, settings: Recipe):
        wrong = 0.1 * (moved if stage.step and moved is not None else 1)
        for step, factor in factors.items():
            wrong *= factor if getattr(settings, step) not in (False, "rtn") else 1
        build = lambda _kept: SimpleNamespace(model=scaled(1 + wrong))  # noqa: E731
        unrestored = lambda _kept: (scaled(1 + wrong), [])  # noqa: E731
        return SimpleNamespace(
            feeds=FEEDS, model=scaled(1), recipe=settings, stage=stage, build=build, unrestored=unrestored,
            with_recipe=lambda other: make(stage, other),
        )  # fmt: skip

    trials = Trials(make, lambda _stage, _done, _total: None)
    stages = [Calibrated(scaled(1), None, FEEDS)]
    stages += [] if moved is None else [Calibrated(scaled(1), None, FEEDS, "smooth")]
    return trials, trials.settle(stages, recipe)


def test_steps_that_help_stay():
    trials, best = trial({"correct_bias": 0.5, "method": 1.0}, Recipe(scheme="int8-static"), moved=0.9)
    assert trials.verdicts == []
    assert best.recipe == Recipe(scheme="int8-static")
    assert best.stage.step == "smooth"


def test_steps_that_harm_are_taken_back():
    trials, best = trial({"correct_bias": 2.0, "method": 0.5}, Recipe(scheme="int8-static"), moved=3)
    assert best.recipe == dataclasses.replace(Recipe(scheme="int8-static"), correct_bias=False)
    assert best.stage.step == ""
    assert [(verdict.step, verdict.kept) for verdict in trials.verdicts] == [("smooth", False), ("correct_bias", False)]
    assert trials.verdicts[0].line() == "smooth taken back: outputs 9 % off with it, 1 % without"


def test_what_is_asked_for_stays_and_is_told():
    recipe = Recipe(scheme="int8-static", smooth=True, method="gptq")
    trials, best = trial({"correct_bias": 1.0, "method": 2.0}, recipe, moved=3)
    assert best.recipe == recipe
    assert best.stage.step == "smooth"
    assert [(verdict.step, verdict.kept) for verdict in trials.verdicts] == [("smooth", True), ("method", True)]


def test_what_nobody_wants_is_not_tried():
    recipe = Recipe(scheme="int8-static", method="rtn", correct_bias=False)
    assert trial({"correct_bias": 0.1, "method": 0.1}, recipe)[1].recipe == recipe


def chain(middle: str, seed: int) -> ir.Model:
    """Two products; between them a Mul by a negative number or a vector, or a gate, and a Relu or LeakyRelu.

    Most channels are negative there, so that a Relu behind the Mul leaves some of them with next to nothing.
    """
    rng = np.random.default_rng(seed)
    weight = lambda: rng.standard_normal((64, 64)).astype(np.float32) / 4  # noqa: E731
    b = Builder(18)
    y = b.op(
        "MatMul",
        b.op("Relu", b.input("x", ["n", 64]), name="r0"),
        b.constant("V", weight() + np.float32(0.1)),
        name="first",
    )
    if middle == "vector":
        y = b.op("Mul", y, b.constant("k", -np.exp(rng.standard_normal(64)).astype(np.float32)), name="m")
    elif middle == "two":
        y = b.op("Mul", y, b.op("Sigmoid", y, name="gate"), name="m")
    else:
        y = b.op("Mul", y, b.constant("k", np.float32(-0.5)), name="m")
    y = b.op("LeakyRelu" if middle == "leaky" else "Relu", y, name="r1")
    b.output(b.op("MatMul", y, b.constant("W", weight()), name="second"), ["n", 64])
    return b.model()


@pytest.mark.parametrize("scheme", ["int8-static", "fp8-static"])
@pytest.mark.parametrize("middle", ["number", "vector", "two", "leaky"])
def test_smoothing_harms_no_model(middle, scheme, tmp_path):
    for seed in range(2):
        rng = np.random.default_rng(seed)
        data = [{"x": rng.standard_normal((4, 64)).astype(np.float32)} for _ in range(4)]
        noise = OutputNoise(chain(middle, seed), data)
        found = []
        for smooth in (None, False):
            target = tmp_path / f"{smooth}.onnx"
            optimize(chain(middle, seed), Recipe(scheme=scheme, smooth=smooth), target, calibration=Calibration(data))
            found.append(noise(ir.load(target)))
        assert found[0] <= 1.2 * found[1]


def test_the_report_tells(tmp_path, monkeypatch):
    """Smoothing that scales channels far apart for nothing is taken back."""
    from onnxpress.optimizer.passes.smoothing_error import SmoothingError

    monkeypatch.setattr(SmoothingError, "best", lambda _self: (0.5, np.logspace(-2, 2, 64), 0.1))
    data = [{"x": np.random.default_rng(n).standard_normal((4, 64)).astype(np.float32)} for n in range(4)]
    reports, written = [], []
    for smooth in (None, False):
        target = tmp_path / f"{smooth}.onnx"
        recipe = Recipe(scheme="int8-static", smooth=smooth, restore_moments=False)
        reports.append(optimize(chain("number", 0), recipe, target, calibration=Calibration(data)))
        session = open_session(target.read_bytes(), session_options())
        written.append(session.run(None, data[0])[0])
    assert [verdict["step"] for verdict in reports[0].details["harmful_steps"]] == ["smooth"]
    assert any(line.startswith("smooth taken back") for _, line in reports[0].rows)
    assert "harmful_steps" not in reports[1].details
    np.testing.assert_array_equal(*written)


def test_weights_are_rounded_once_for_all_trials_of_a_model(tmp_path, monkeypatch):
    data = [{"x": np.random.default_rng(n).standard_normal((4, 64)).astype(np.float32)} for n in range(4)]
    rounded = []
    whole = int8_models.round_weight
    monkeypatch.setattr(int8_models, "round_weight", lambda *a, **k: rounded.append(a) or whole(*a, **k))
    recipe = Recipe(scheme="int8-static", smooth=False, method="gptq")
    report = optimize(chain("number", 0), recipe, tmp_path / "out.onnx", calibration=Calibration(data))
    assert sum(report.rewritten[kind] for kind in ("MatMul", "Gemm") if kind in report.rewritten) == 2
    assert len(rounded) == 2
