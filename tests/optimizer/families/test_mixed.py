"""Weights of several widths, by what each costs the model."""

from __future__ import annotations

from pathlib import Path

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress.optimizer import Override, Recipe, optimize
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.calibration.data import Data
from onnxpress.optimizer.calibration.inputs import inputs_of
from onnxpress.optimizer.errors import UsageError
from onnxpress.optimizer.families.weight_only import mixed
from onnxpress.optimizer.families.weight_only.mixed import Mixture
from onnxpress.optimizer.families.weight_only.rewrite import decide
from onnxpress.optimizer.families.weight_only.sensitivity import Sensitivity
from onnxpress.optimizer.model_io.reading import load
from onnxpress.optimizer.runtime.session import open_session, session_options
from onnxpress.optimizer.settings.budget import Budget
from sessions import needs

WIDTH = 64


def network(path, loud=1):
    """One product that the output hangs on, and one that hardly counts; four of their inputs may be louder."""
    b = graphs.Builder(18)
    x = b.input("x", [None, WIDTH])
    if loud != 1:
        x = b.op("Mul", x, b.constant("loud", np.array([loud] * 4 + [1] * (WIDTH - 4), np.float32)))
    much = b.op("MatMul", x, b.constant("W0", graphs.weight(WIDTH, WIDTH, 0)), name="much")
    little = b.op("MatMul", x, b.constant("W1", graphs.weight(WIDTH, WIDTH, 1)), name="little")
    faint = b.op("Mul", little, b.constant("faint", np.array(1e-3, np.float32)))
    b.output(b.op("Add", much, faint), [None, WIDTH])
    ir.save(b.model(), path)
    return path


def rows(seed=1):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((64, WIDTH)).astype(np.float32)} for _ in range(8)]


def convert(path, budget, scheme="int4", calibration=True, checkpoint=None, **settings):
    data = Calibration(lambda: iter(rows()), checkpoint=checkpoint) if calibration else None
    recipe = Recipe(scheme=scheme, budget=budget, accuracy_level=0, check=False, **settings)
    return optimize(path, recipe, Path(path).with_name("out.onnx"), calibration=data)


def loss(path, reference):
    (feed, *_) = rows(9)
    got, want = (open_session(p, session_options(ours=True)).run(None, feed)[0] for p in (path, reference))
    return np.square(got - want).sum() / np.square(want).sum()


def stored(report):
    return sum(weight.stored for weight in report.weights)


def widths(report):
    return {weight.nodes[0]: weight.scheme for weight in report.weights}


_BUDGETS = ("100bits", "4.7bits", "3.5bits")


@pytest.fixture
def path(tmp_path):
    return network(tmp_path / "m.onnx")


@needs("two bits")
def test_bits_go_where_they_count(path):
    """In fewer bytes than uniform 5 bits, with a smaller error."""
    lost = loss(convert(path, None, "int5", block_size=64).output, path)
    report = convert(path, "5.6bits", block_size=64)
    found = widths(report)
    assert found == {"much": "int8", "little": "int2"}
    assert loss(report.output, path) < lost / 10
    assert report.details["mixed"]["bits"] <= 5.6


@pytest.mark.parametrize("scheme", ["int4", "nf4", "mxfp4", "bfp4", "fp6-e3m2"])
def test_the_budget_holds(path, scheme):
    """Of every kind of codes, in bytes and in bits."""
    report = convert(path, "9bits", scheme)
    most = report.details["mixed"]["bits"]
    for bits in (most - 1, most - 2):
        report = convert(path, f"{bits:.2f}bits", scheme)
        assert report.details["mixed"]["bits"] <= round(bits, 2)
        assert 8 * stored(report) / (2 * WIDTH * WIDTH) <= round(bits, 2)
    size = stored(report) + 4  # the scalar
    assert stored(convert(path, f"{size / 1e3:.3f}kB", scheme)) == size - 4


def test_the_recipe_makes_the_same_model(path):
    report = convert(path, "4.7bits")
    assert "budget" not in report.recipe
    first = Path(report.output).read_bytes()
    again = optimize(
        path, Recipe.from_mapping(report.recipe), report.output, calibration=Calibration(lambda: iter(rows()))
    )
    assert Path(report.output).read_bytes() == first
    assert again.recipe == report.recipe


def test_what_the_user_settled_stays(path):
    """A node with a scheme of its own, and one in float."""
    report = convert(path, "4bits", overrides=(Override(match="much", scheme="int3"),))
    assert widths(report)["much"] == "int3"
    assert set(widths(convert(path, "4bits", exclude=("little",)))) == {"much"}


@needs("two bits")
def test_products_of_low_rank_are_chosen_with_the_bits(tmp_path):
    """Whole, in part, or not at all, within the budget; the recipe says so, and makes the same model again."""
    path = network(tmp_path / "m.onnx", loud=100)
    lost = loss(convert(path, "5.2bits", block_size=64).output, path)
    report = convert(path, "5.2bits", block_size=64, rank=16)
    ranks = {name: told["rank"] for name, told in report.details["compensated"].items()}
    assert set(ranks) == {"W0"}, "little counts too little for anything beside it"
    assert ranks["W0"] in (4, 8, 16)
    assert 8 * stored(report) / (2 * WIDTH * WIDTH) <= 5.2
    assert report.details["mixed"]["weights"][f"{widths(report)['much']} and rank {ranks['W0']}"] == 1
    assert loss(report.output, path) < lost
    first = Path(report.output).read_bytes()
    data = Calibration(lambda: iter(rows()))
    optimize(path, Recipe.from_mapping(report.recipe), report.output, calibration=data)
    assert Path(report.output).read_bytes() == first


def test_products_of_low_rank_take_time(path, monkeypatch):
    """Here a bit for each eight of the rank."""
    times = lambda _K, _N, recipe: float(recipe.scheme[3:]) + recipe.rank / 8  # noqa: E731
    monkeypatch.setattr(mixed, "product_time", times)
    report = convert(path, "8ms", block_size=64, rank=16)
    total = 0.0
    for name, count in report.details["mixed"]["weights"].items():
        scheme, _, rank = name.partition(" and rank ")
        total += count * (float(scheme[3:]) + float(rank or 0) / 8)
    assert 4 <= total <= 8


def test_milliseconds(path, monkeypatch):
    """All that there is within a large budget; what no machine reaches is told."""
    assert set(widths(convert(path, "1000ms", block_size=64)).values()) == {"int8"}
    monkeypatch.setattr(mixed, "product_time", lambda _K, _N, recipe: float(recipe.scheme[3:]))
    assert widths(convert(path, "10ms", block_size=64)) == {"much": "int8", "little": "int2"}
    with pytest.raises(UsageError, match=r"budget cannot be met: with the fewest bits the weights take .* ms"):
        convert(path, "0.000000001ms")


def test_budgets_that_cannot_be_met(path):
    with pytest.raises(UsageError, match=r"budget cannot be met: with the fewest bits the weights take 3\.00 bits"):
        convert(path, "1bits")
    with pytest.raises(UsageError, match=r"budget cannot be met: .* take 3\.1 KB"):
        convert(path, "1kB")
    with pytest.raises(UsageError, match="has to see data"):
        convert(path, "4bits", calibration=False)


def test_the_fewest_bytes_for_a_damage(path):
    model = load(path)
    recipe = Recipe(scheme="int4", block_size=64)
    decide(model, recipe)
    mixture = Mixture(model, recipe, Data("rows", inputs_of(model), rows), lambda *_: None)
    low, high = mixture.sizes
    choices = [mixture.choose(Budget(size, "bytes")) for size in np.linspace(low, high, 9)]
    damages = [choice.damage for choice in choices]
    assert damages == sorted(damages, reverse=True)
    middle = choices[4]
    found = mixture.choose_for(middle.damage)
    assert found.damage <= middle.damage
    assert found.size <= middle.size


@pytest.mark.parametrize(("budget", "free"), [("12bits", True), ("5bits", False)])
def test_a_budget_that_holds_nothing_back_is_told(path, budget, free):
    (line,) = [text for label, text in convert(path, budget).rows if label == "mixed"]
    assert ("holds nothing back" in line) == free


def test_an_interrupted_measurement_goes_on_to_the_same_bytes(path, tmp_path, monkeypatch):
    """Weights that were measured are not measured again; the rounding behind it goes on from its own folder."""
    folder, measured = tmp_path / "kept", []
    whole = Path(convert(path, "4.7bits").output).read_bytes()
    harm = Sensitivity.of

    def measure(self, changed):
        if len(measured) == 1:
            raise KeyboardInterrupt
        measured.extend(changed)
        return harm(self, changed)

    monkeypatch.setattr(Sensitivity, "of", measure)
    with pytest.raises(KeyboardInterrupt):
        convert(path, "4.7bits", checkpoint=folder)
    monkeypatch.setattr(Sensitivity, "of", lambda self, changed: measured.extend(changed) or harm(self, changed))
    assert Path(convert(path, "4.7bits", checkpoint=folder).output).read_bytes() == whole
    assert sorted(measured) == ["little", "much"]
    assert Path(convert(path, "4.7bits", checkpoint=folder).output).read_bytes() == whole
    assert len(measured) == 2


def test_budgets_share_a_measurement(path, tmp_path, monkeypatch):
    """Their roundings lie beside each other, and one that holds nothing back measures nothing that others need."""
    folder = tmp_path / "kept"
    made = {budget: Path(convert(path, budget, checkpoint=folder).output).read_bytes() for budget in _BUDGETS}
    assert len(set(made.values())) == len(_BUDGETS)
    monkeypatch.setattr(Sensitivity, "of", None)  # so that nothing can be measured again
    for budget, whole in made.items():
        assert Path(convert(path, budget, checkpoint=folder).output).read_bytes() == whole


def test_a_measurement_of_other_settings_is_not_taken_up(path, tmp_path):
    convert(path, "4.7bits", checkpoint=tmp_path / "kept")
    with pytest.raises(UsageError, match="another model, other settings or other data"):
        convert(path, "4.7bits", checkpoint=tmp_path / "kept", symmetric=True)


def test_weights_of_a_file_of_5_bits_stay_what_they_are(tmp_path):
    """They lie on grids about zero, whose blocks of 32 no zero point makes; a recipe that wants one keeps it.

    Such files hold scales as float16.
    """
    rng = np.random.default_rng(5)
    codes = rng.integers(-16, 16, (2, WIDTH, WIDTH)).astype(np.float32)
    codes[:, ::32] = -16
    scales = rng.choice([-1, 1], (2, 2, 1, WIDTH)) * rng.uniform(0.5, 1, (2, 2, 1, WIDTH)) / 256
    weights = (codes.reshape(2, 2, 32, WIDTH) * scales.astype(np.float16).astype(np.float32)).reshape(2, WIDTH, WIDTH)
    b = graphs.Builder(18)
    h = b.op("Tanh", b.op("MatMul", b.input("x", [None, WIDTH]), b.constant("W0", weights[0]), name="first"))
    b.output(b.op("MatMul", h, b.constant("W1", weights[1]), name="second"), [None, WIDTH])
    path = tmp_path / "m.onnx"
    ir.save(b.model(), path)
    assert loss(convert(path, "6bits").output, path) < 1e-10
    assert loss(convert(path, "6.2bits", symmetric=False).output, path) > 1e-6
