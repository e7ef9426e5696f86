"""The transform hadamard: what schemes gain by it, what it tells, and the same model again."""

from __future__ import annotations

from pathlib import Path

import decoder_layers
import graphs
import numpy as np
import onnx_ir as ir
import pytest
from decoder_layers import Decoder
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.errors import UsageError
from onnxpress.optimizer.passes import rotate_channels
from onnxpress.optimizer.quantization.transforms.hadamard import Orthogonal
from onnxpress.optimizer.runtime.session import open_session, session_options

OUTLIERS = [5, 40]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A decoder some of whose channels are far larger than the others."""
    made = Decoder(norms="layer", hidden=64, cached=False)
    for node in made.graph:
        weight = node.inputs[0 if node.op_type == "Gather" else 1] if node.op_type in ("Gather", "MatMul") else None
        if weight is None or weight.const_value is None or len(weight.shape) != 2:
            continue
        array = weight.const_value.numpy().copy()
        if node.op_type == "Gather" or node.name in ("0/out/MatMul", "0/down/MatMul"):
            array[:, OUTLIERS] *= 12
        else:
            array[OUTLIERS] /= 6
        weight.const_value = ir.tensor(array, name=weight.name)
    path = tmp_path_factory.mktemp("rotating") / "m.onnx"
    ir.save(made.made, path)
    return path


def inputs(path, seed=0):
    return decoder_layers.feeds(ir.load(path), 4, 12, 0, [0] * 4, seed)


def noise(output, path):
    """Decibels of what is lost of the logits, over enough inputs that it is no chance of one."""
    sessions = [open_session(each, session_options(ours=True)) for each in (path, output)]
    one, other = (np.stack([session.run(None, inputs(path, seed))[0] for seed in range(4)]) for session in sessions)
    return 10 * np.log10(np.square(one - other).sum() / np.square(one).sum())


@pytest.mark.parametrize(
    "settings",
    [{"scheme": "int8-dynamic"}, {"scheme": "int8", "block_size": 32, "accuracy_level": 4}],
    ids=["int8-dynamic", "int8 of level 4"],
)
def test_rounded_activations_gain(path, tmp_path, settings):
    plain = optimize(path, Recipe(**settings), tmp_path / "plain.onnx")
    report = optimize(path, Recipe(**settings, transform="hadamard"), tmp_path / "out.onnx")
    assert noise(report.output, path) < noise(plain.output, path) - 3
    assert report.details["rotated"] == {
        "streams": [{"channels": 64, "hadamard": True, "norms": 3, "reads": 6, "writes": 3}],
        "attentions": 1, "copied": 0,
    }  # fmt: skip
    line = "residual stream of 64 channels, 6 products read it, by a Hadamard matrix; values of 1 attentions"
    assert ("rotated", line) in report.rows
    assert report.rewritten == plain.rewritten
    assert report.recipe["transform"] == "hadamard"
    again = optimize(path, Recipe.from_mapping(report.recipe), tmp_path / "again.onnx")
    assert Path(again.output).read_bytes() == Path(report.output).read_bytes()


def test_float_weights_lose_nothing(path, tmp_path):
    """Where all but one product stay in float, so does what they compute."""
    recipe = Recipe(scheme="int8", include=("0/up/MatMul",), accuracy_level=0, transform="hadamard")
    report = optimize(path, recipe, tmp_path / "out.onnx")
    assert noise(report.output, path) < -40


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_methods_round_the_rotated_model(path, tmp_path, method):
    data = Calibration([inputs(path, seed) for seed in range(1, 5)])
    recipe = Recipe(scheme="int6", method=method, transform="hadamard", accuracy_level=0)
    report = optimize(path, recipe, tmp_path / "out.onnx", calibration=data if method != "rtn" else None)
    assert noise(report.output, path) < -15
    assert report.details["rotated"]["attentions"] == 1
    assert report.recipe["transform"] == "hadamard"


def test_the_search_for_a_recipe_keeps_it(path, tmp_path):
    def metric(session):
        return 1 - np.sqrt(np.square(session.run(None, feeds)[0] - wanted).sum() / np.square(wanted).sum())

    feeds = inputs(path)
    wanted = open_session(path, session_options()).run(None, feeds)[0]
    settings = {"scheme": "int6", "transform": "hadamard", "accuracy_level": 0, "check": False}
    data = Calibration([inputs(path, seed) for seed in range(1, 5)])
    recipe = Recipe(**settings, max_drop=1e-3, metric=metric)
    report = optimize(path, recipe, tmp_path / "out.onnx", calibration=data)
    assert len(report.trail) > 2
    assert not any("smoothquant" in each.recipe for each in report.trail)
    assert report.recipe["transform"] == "hadamard"
    read = data if report.recipe["method"] != "rtn" else None
    again = optimize(path, Recipe.from_mapping(report.recipe), tmp_path / "again.onnx", calibration=read)
    assert Path(again.output).read_bytes() == Path(report.output).read_bytes()


def test_what_computes_otherwise_is_taken_back(path, tmp_path, monkeypatch):
    plain = optimize(path, Recipe(accuracy_level=0), tmp_path / "plain.onnx")
    turn = Orthogonal.turn_along
    monkeypatch.setattr(Orthogonal, "turn_along", lambda self, array, axis, scale=None: turn(self, array, axis) * 1.01)
    report = optimize(path, Recipe(accuracy_level=0, transform="hadamard"), tmp_path / "out.onnx")
    (warning,) = (each for each in report.warnings if "hadamard" in each)
    assert warning.startswith("transform hadamard rotates nothing: output ")
    assert "rotated" not in report.details
    one, other = (ir.load(each.output).graph.initializers for each in (plain, report))
    assert {name: value.const_value.tobytes() for name, value in one.items()} == {
        name: value.const_value.tobytes() for name, value in other.items()
    }


def test_nothing_to_rotate_is_told(tmp_path):
    report = optimize(graphs.matmul_model(), Recipe(transform="hadamard"), tmp_path / "out.onnx")
    assert "transform hadamard rotates nothing: there are no residual streams, nor attentions" in report.warnings
    b = graphs.Builder()
    x = b.op("Gather", b.constant("table", graphs.weight(16, 32)), b.input("ids", ["n", 4], ir.DataType.INT64))
    scale = b.constant("scale", np.ones(32, np.float32))
    y = b.op("MatMul", b.op("LayerNormalization", x, scale, axis=-1), b.constant("W", graphs.weight(32, 32)), name="p")
    x = b.op("Add", x, y, name="sum")
    y = b.op("MatMul", b.op("LayerNormalization", x, scale, axis=-1), b.constant("V", graphs.weight(32, 8)), name="q")
    b.output(y, ["n", 4, 8])
    b.output(b.op("Tanh", x, name="tanh"), ["n", 4, 32])
    report = optimize(b.model(), Recipe(transform="hadamard"), tmp_path / "out.onnx")
    assert "transform hadamard rotates nothing: Tanh reads the residual stream (at tanh)" in report.warnings
    assert report.passes[rotate_channels.RotateChannels.__name__] == {"tanh": "Tanh reads the residual stream"}


def test_what_is_refused():
    with pytest.raises(UsageError, match=r'transform is "awq", which needs data, for weights alone; .* takes hadamard'):
        Recipe(scheme="int8-dynamic", transform="awq")
    with pytest.raises(UsageError, match="transform: not read by scheme int8-static"):
        Recipe(scheme="int8-static", transform="hadamard")
