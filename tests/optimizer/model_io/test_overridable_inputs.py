"""Inputs with a value in the file: constants in old files and by the recipe, else what a caller may override."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from odd_models import PRODUCT, RELU, WEIGHT, X, check, info, model_of, node, noise, run
from onnx import numpy_helper
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.conversion.pipeline import decide
from onnxpress.optimizer.errors import OnnxpressError


@pytest.mark.parametrize("ir_version", [0, 1, 2, 3])
@pytest.mark.parametrize("opset", [6, 7, 8, 9])
def test_old_files_list_constants_as_inputs(tmp_path, opset, ir_version):
    inputs = [info("x", ["N", 32]), info("W", [32, 32])]
    model = model_of([RELU, PRODUCT], inputs=inputs, opsets=[("", opset)], ir_version=ir_version)
    written = check(model, X, tmp_path)
    assert [value.name for value in written.graph.input] == ["x"]
    assert written.ir_version >= 4


def test_constants_that_callers_may_override_stay_inputs(tmp_path):
    inputs = [info("x", ["N", 32]), info("V", [32, 32])]
    constants = [WEIGHT, numpy_helper.from_array(noise(32, 32), "V")]
    model = model_of([node("MatMul", ["x", "V"], ["h"]), PRODUCT], inputs=inputs, constants=constants, ir_version=4)
    written = check(model, X, tmp_path, ["int8"])
    assert [value.name for value in written.graph.input] == ["x", "V"]


@pytest.mark.parametrize("clean_up", [True, False])
def test_constants_among_the_inputs_that_nobody_overrides(tmp_path, clean_up):
    """Torch listed them so until 2020. The recipe makes them constants, and says so where it has to be asked to."""
    inputs = [info("x", ["N", 32]), info("W", [32, 32])]
    model = model_of([RELU, PRODUCT], inputs=inputs, ir_version=4)
    with pytest.raises(OnnxpressError, match=r"nothing to quantize.*; input 'W' with a value .* freeze_inputs makes"):
        optimize(copy.deepcopy(model), Recipe(clean_up=clean_up), tmp_path / "o.onnx")
    report = optimize(model, Recipe(freeze_inputs=True, clean_up=clean_up, accuracy_level=0), tmp_path / "o.onnx")
    assert not report.warnings
    written = onnx.load(report.output)
    assert [value.name for value in written.graph.input] == ["x"]
    want = np.maximum(X["x"], 0) @ numpy_helper.to_array(WEIGHT)
    assert np.abs(run(tmp_path / "o.onnx", X)[0] - want).max() < 0.2 * np.abs(want).max()
    assert decide(ir.from_proto(model_of([RELU, PRODUCT], inputs=inputs)), Recipe(freeze_inputs=True))[0].taken


def test_a_weight_that_stays_open_beside_others_is_told(tmp_path):
    inputs = [info("x", ["N", 32]), info("V", [32, 32])]
    constants = [WEIGHT, numpy_helper.from_array(noise(32, 32), "V")]
    model = model_of([node("MatMul", ["x", "V"], ["h"]), PRODUCT], inputs=inputs, constants=constants, ir_version=4)
    (warning,) = optimize(model, Recipe(), tmp_path / "o.onnx").warnings
    assert warning.startswith("input 'V' with a value that a caller may override")
