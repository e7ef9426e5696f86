"""Sizes that a model leaves open, however it writes them: they are read, converted and chosen."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from odd_models import PRODUCT, RELU, WEIGHT, X, check, info, model_of, node, noise, run
from onnx import numpy_helper
from onnxpress.optimizer import Calibration, Recipe, optimize
from onnxpress.optimizer.analysis.bench import bench
from onnxpress.optimizer.errors import UsageError
from onnxpress.optimizer.runtime.feeds import random_feeds

OPEN = ([-1, 32], ["?", 32], ["?", "?"], [-1, -1], [-5, "None"], ["", 32], [None, None])


@pytest.mark.parametrize("sizes", OPEN)
def test_open_sizes(tmp_path, sizes):
    """Data of any size fits, in the graph and in an inner one."""
    model = model_of(
        [RELU, PRODUCT], inputs=[info("x", sizes)], outputs=[info("y", sizes)], value_info=[info("h", sizes)]
    )
    written = check(model, {"x": noise(3, 32)}, tmp_path)
    for value in (*written.graph.input, *written.graph.output):
        assert not any(size.HasField("dim_param") or size.dim_value < 0 for size in value.type.tensor_type.shape.dim)
    check(model, {"x": noise(5, 32)}, tmp_path, ["int8-static"])


def test_sizes_of_one_such_name_are_not_equal(tmp_path):
    """Else an Expand to a size that differs would vanish."""
    nodes = [
        node("Shape", ["z"], ["s"]), node("Expand", ["x", "s"], ["h"]), node("Reshape", ["h", "rows"], ["r"]),
        node("MatMul", ["r", "W"], ["y"]),
    ]  # fmt: skip
    rows = numpy_helper.from_array(np.int64([-1, 32]), "rows")
    inputs = [info("x", ["?", "?"]), info("z", ["?", "?"])]
    feeds = {"x": noise(1, 32), "z": noise(4, 32)}
    check(model_of(nodes, inputs=inputs, constants=[WEIGHT, rows]), feeds, tmp_path)


def test_inputs_without_a_shape(tmp_path):
    model = model_of([RELU, PRODUCT], inputs=[info("x", None)])
    check(model, X, tmp_path)
    np.savez(tmp_path / "data.npz", x=X["x"])
    optimize(
        tmp_path / "m.onnx", Recipe(scheme="int8-static"), tmp_path / "o.onnx",
        calibration=Calibration(tmp_path / "data.npz"),
    )  # fmt: skip
    assert run(tmp_path / "o.onnx", X)[0].shape == (2, 32)


@pytest.mark.usefixtures("probe_within_process")
@pytest.mark.parametrize("sizes", [["?", 3, "?", "?"], [-1, 3, -1, -1], ["N", 3, "H", "H"], [None, 3, None, None]])
def test_every_open_size_can_be_chosen_by_its_place(tmp_path, sizes):
    convolution = node("Conv", ["x", "K"], ["y"], pads=[1] * 4)
    kernel = numpy_helper.from_array(noise(8, 3, 3, 3), "K")
    onnx.save(model_of([convolution], inputs=[info("x", sizes)], constants=[kernel]), tmp_path / "m.onnx")
    session = ort.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    dims = {"x:0": 2, "x:2": 12, "x:3": 20}
    assert random_feeds(session.get_inputs(), dims)["x"].shape == (2, 3, 12, 20)
    with pytest.raises(UsageError, match="dim x:1: no input has a size of this name"):
        random_feeds(session.get_inputs(), {"x:1": 4})
    assert bench([tmp_path / "m.onnx"], dims=dims, rounds=1) is not None


@pytest.mark.usefixtures("probe_within_process")
def test_all_sizes_without_a_name_can_be_chosen_at_once(tmp_path):
    """Those of a model as it is exported, and of what it is converted to."""
    onnx.save(model_of([RELU, PRODUCT], inputs=[info("x", ["?", 32])]), tmp_path / "m.onnx")
    optimize(tmp_path / "m.onnx", Recipe(scheme="int8"), tmp_path / "o.onnx")
    for name in "mo":
        session = ort.InferenceSession(str(tmp_path / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        assert random_feeds(session.get_inputs(), {"?": 6})["x"].shape == (6, 32)
    assert bench([tmp_path / "m.onnx", tmp_path / "o.onnx"], dims={"?": 3}, rounds=1) is not None


def test_channels_of_an_image_by_their_name(tmp_path):
    """As optimum exports vision models, whose first product fixes what their input leaves open."""
    sizes = ["batch_size", "num_channels", "height", "width"]
    nodes = [
        node("Conv", ["x", "K"], ["h"]), node("GlobalAveragePool", ["h"], ["m"]), node("Flatten", ["m"], ["f"]),
        node("MatMul", ["f", "V"], ["y"]),
    ]  # fmt: skip
    constants = [numpy_helper.from_array(noise(*of), name) for name, of in (("K", (32, 3, 3, 3)), ("V", (32, 48)))]
    onnx.save(model_of(nodes, inputs=[info("x", sizes)], constants=constants), tmp_path / "m.onnx")
    session = ort.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    assert random_feeds(session.get_inputs(), {})["x"].shape == (1, 3, 224, 224)
    assert random_feeds(session.get_inputs(), {"num_channels": 4}, side=9)["x"].shape == (1, 4, 9, 9)
    report = optimize(tmp_path / "m.onnx", Recipe(scheme="int8"), tmp_path / "o.onnx")
    assert report.details["check"]["run_on"] == "random inputs"


@pytest.mark.parametrize("side", [336, 384])
def test_a_side_that_only_weights_know_is_found(tmp_path, side):
    nodes = [node("Conv", ["x", "K"], ["h"], strides=[48, 48]), node("Flatten", ["h"], ["f"]),
             node("MatMul", ["f", "V"], ["y"])]  # fmt: skip
    constants = {"K": noise(4, 3, 48, 48), "V": noise(4 * (side // 48) ** 2, 48)}
    made = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    onnx.save(model_of(nodes, inputs=[info("x", ["n", 3, "h", "w"])], constants=made), tmp_path / "m.onnx")
    report = optimize(tmp_path / "m.onnx", Recipe(scheme="int8"), tmp_path / "o.onnx")
    assert report.details["check"]["run_on"] == "random inputs"
