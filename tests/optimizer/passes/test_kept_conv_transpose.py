"""A ConvTranspose of schemes that write it as Conv: recipes keep it, and reports name it, as the user knows it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from graphs import Builder
from onnxpress.optimizer.analysis.inspect import inspect
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.conversion.calibrate import calibrate
from onnxpress.optimizer.conversion.pipeline import optimize
from onnxpress.optimizer.model_io import storage
from onnxpress.optimizer.settings.recipe import Override, Recipe

SCHEMES = ["int8-static", "fp8-static", "fp8-dynamic"]
STATIC = SCHEMES[:2]
NAMES = {"conv0", "conv1", "conv2", "up0", "up1"}
KEPT = [
    {"exclude": ("up1",)},
    {"overrides": (Override(match="up1", keep_float=True),)},
    {"include": ("conv*", "up0")},
]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def images(count: int = 4) -> list[dict[str, np.ndarray]]:
    return [{"x": noise(1, 8, 6, 6, seed=i)} for i in range(count)]


def decoder(opset: int = 17) -> ir.Model:
    """Two steps that double height and width between three convolutions."""
    b = Builder(opset)
    y = b.input("x", ["batch", 8, 6, 6])
    for i in range(3):
        w = noise(8, 8, 3, 3, seed=i) / 8
        y = b.op("Relu", b.op("Conv", y, b.constant(f"w{i}", w), name=f"conv{i}", pads=[1, 1, 1, 1]))
        if i < 2:
            up = [b.constant(f"v{i}", noise(8, 8, 2, 2, seed=9 + i) / 4), b.constant(f"b{i}", noise(8, seed=i))]
            y = b.op("Relu", b.op("ConvTranspose", y, *up, name=f"up{i}", strides=[2, 2]))
    b.output(y, ["batch", 8, 24, 24])
    return b.model()


@pytest.fixture
def path(tmp_path):
    storage.save(decoder(), tmp_path / "decoder.onnx")
    return tmp_path / "decoder.onnx"


def convert(path, scheme, **settings):
    data = Calibration(images()) if scheme in STATIC else None
    ends = {} if scheme == "int8-static" else {"first_and_last": True}
    return optimize(path, Recipe(scheme=scheme, **ends, **settings), calibration=data)


def outputs(path) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0] for feed in images()])


def transposed(report) -> list[str]:
    nodes = onnx.load(report.output).graph.node
    assert sum(node.op_type == "DepthToSpace" for node in nodes) == sum("_moved" in node.name for node in nodes)
    return [node.name for node in nodes if node.op_type == "ConvTranspose"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_reports_name_the_operator_of_the_model(path, scheme):
    report = convert(path, scheme)
    assert (report.rewritten["Conv"], report.rewritten["ConvTranspose"]) == (3, 2)
    assert {node for weight in report.weights for node in weight.nodes} == NAMES
    assert transposed(report) == []
    assert not report.warnings


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("settings", KEPT)
def test_one_that_the_recipe_keeps_by_its_name_stays_as_it_is(path, scheme, settings):
    report = convert(path, scheme, **settings)
    assert (report.rewritten["Conv"], report.rewritten["ConvTranspose"]) == (3, 1)
    assert transposed(report) == ["up1"]
    reasons = [reason for reason in report.left if "ConvTranspose" in reason]
    assert len(reasons) == 1
    assert "recipe" in reasons[0]
    assert not report.warnings
    weights = {name: array for name, array in stored(report).items() if name == "v1"}
    np.testing.assert_array_equal(weights["v1"], noise(8, 8, 2, 2, seed=10) / 4)
    a, b = outputs(path), outputs(report.output)
    assert 0 < np.square(a - b).sum() < 1e-2 * np.square(a).sum()


def stored(report) -> dict[str, np.ndarray]:
    return {value.name: onnx.numpy_helper.to_array(value) for value in onnx.load(report.output).graph.initializer
            if value.data_type == onnx.TensorProto.FLOAT}  # fmt: skip


@pytest.mark.parametrize("opset", [11, 13, 21])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_names_of_models_of_any_opset(tmp_path, scheme, opset):
    storage.save(decoder(opset), tmp_path / "decoder.onnx")
    report = convert(tmp_path / "decoder.onnx", scheme, exclude=("up0",))
    assert (report.rewritten["ConvTranspose"], transposed(report), report.warnings) == (1, ["up0"], ())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_are_kept_by_their_operator(path, scheme):
    report = convert(path, scheme, overrides=(Override(op_type="ConvTranspose", keep_float=True),))
    assert report.rewritten.get("ConvTranspose") is None
    assert transposed(report) == ["up0", "up1"]
    assert not report.warnings


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_override_of_conv_is_not_for_them(path, scheme):
    report = convert(path, scheme, overrides=(Override(op_type="Conv", keep_float=True),))
    assert "Conv" not in report.rewritten
    assert report.rewritten["ConvTranspose"] == 2


def test_settings_of_one_by_its_operator(path):
    report = convert(path, "fp8-static", overrides=(Override(op_type="ConvTranspose", weight_format="e5m2"),))
    assert report.schemes == {"e4m3fn": 3, "e5m2, activations e4m3fn": 2}


@pytest.mark.parametrize("scheme", STATIC)
def test_statistics_of_the_model_serve_a_recipe_that_keeps_some(path, tmp_path, scheme):
    calibrate(path, images(), tmp_path / "statistics.npz")
    recipe = Recipe(scheme=scheme, exclude=("up*",))
    report = optimize(path, recipe, calibration=Calibration(statistics=tmp_path / "statistics.npz"))
    assert transposed(report) == ["up0", "up1"]


def test_one_kept_by_a_measurement_is_called_by_its_name(path):
    report = convert(path, "int8-static", max_drop=1e-9)
    kept = set(report.details["mixed_precision"]["kept"])
    assert kept & {"up0", "up1"}
    assert kept <= NAMES


def test_inspect_says_the_same(path):
    found = inspect(path, Recipe(scheme="int8-static", exclude=("up0",)))
    assert ("up1", "ConvTranspose", 8 * 8 * 4) in found.taken
    assert ("up0", "ConvTranspose", "excluded by the recipe") in found.left
