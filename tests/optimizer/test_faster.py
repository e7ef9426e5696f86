"""Layers that stay in float for speed, by made-up times."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import Builder
from onnxpress.optimizer import faster
from onnxpress.optimizer.analysis.timing import seconds_of_models
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.errors import OnnxpressError
from onnxpress.optimizer.pipeline import optimize
from onnxpress.optimizer.recipe import Recipe

RECIPE = Recipe(scheme="int8-static", range_method="minmax", only_if_faster=True, restore_moments=False)
DATA = [{"x": np.random.default_rng(i).standard_normal((1, 8, 6, 6)).astype(np.float32)} for i in range(3)]


def convs() -> ir.Model:
    b = Builder(17)
    y = b.input("x", [1, 8, 6, 6])
    for index in range(4):
        w = np.random.default_rng(index).standard_normal((8, 8, 1, 1)).astype(np.float32)
        y = b.op("Conv", y, b.constant(f"w{index}", w), name=f"conv{index}")
    b.output(y, [1, 8, 6, 6])
    return b.model()


def in_int8(model: ir.Model) -> set[str]:
    return {node.name or "" for node in model.graph if node.op_type == "Conv" and node.inputs[1].producer() is not None}


@pytest.fixture
def machine(monkeypatch):
    """A machine that runs models in the seconds of a function of the convolutions in int8, and finds nodes slower."""

    def make(seconds, slower):
        asked = []

        def judge(_float, _int8, products, _feeds):
            asked.append(set(products))
            return {name: (1e-6, 2e-6) for name in slower[len(asked) - 1 :][:1] for name in name if name in products}

        monkeypatch.setattr(faster, "slower_in_int8", judge)
        monkeypatch.setattr(faster, "seconds_of_models", lambda models, _feeds: [seconds(in_int8(m)) for m in models])
        return asked

    return make


def converted():
    model = convs()
    return model, optimize(model, RECIPE, calibration=Calibration(DATA))


def test_neighbours_are_judged_again(machine):
    asked = machine(
        lambda names: 1 + len(names - {"conv0", "conv3"}) - len(names & {"conv0", "conv3"}) / 8,
        [["conv1"], ["conv2"], []],
    )
    model, report = converted()
    assert asked == [{"conv0", "conv1", "conv2", "conv3"}, {"conv0", "conv2", "conv3"}, {"conv0", "conv3"}]
    assert in_int8(model) == {"conv0", "conv3"}
    assert report.left == {"Conv: slower in int8: 2 us against 1": 2}
    assert report.details["seconds"] == {"float32": 1, "int8": 0.75}


def test_a_node_that_costs_its_neighbours_more_stays_in_int8(machine):
    machine(lambda names: {4: 0.5, 3: 0.4, 2: 0.6, 0: 1}[len(names)], [["conv1"], ["conv2"], []])
    assert in_int8(converted()[0]) == {"conv0", "conv2", "conv3"}


def test_rounds_end(machine):
    asked = machine(lambda names: 1 / (1 + len(names)), [["conv0"], ["conv1"], ["conv2"], ["conv3"]])
    assert in_int8(converted()[0]) == {"conv0", "conv1", "conv2", "conv3"}
    assert len(asked) == 3


def test_a_model_that_is_slower_as_a_whole_is_refused(machine):
    machine(lambda names: 1 + len(names) / 100, [[]])
    model = convs()
    with pytest.raises(OnnxpressError, match=r"not faster in int8.*1040\.00 ms with 4 products in int8, 1000\.00 ms"):
        optimize(model, RECIPE, calibration=Calibration(DATA))
    assert in_int8(model) == set()


def test_where_all_are_slower_nothing_is_written(machine):
    machine(lambda names: 1 + len(names), [["conv0", "conv1", "conv2", "conv3"]])
    with pytest.raises(OnnxpressError, match="nothing to quantize, nothing written"):
        converted()


def test_times_are_of_each_model():
    seconds = seconds_of_models([convs(), convs()], DATA[0], rounds=1)
    assert len(seconds) == 2
    assert min(seconds) > 0
