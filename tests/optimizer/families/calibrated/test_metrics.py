"""int8-static judged by a metric: bounds on what it may lose, and what it decides."""

from __future__ import annotations

import dataclasses
import json
import sys
import types

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.conversion.pipeline import METADATA_KEY, optimize
from onnxpress.optimizer.model_io import storage
from onnxpress.optimizer.passes.place_qdq import PlaceQdq
from onnxpress.optimizer.settings.recipe import Recipe
from small_cnn import STATIC, cnn, images, outputs


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "cnn.onnx"
    storage.save(cnn(), file)
    return file


def mean_square(session: ort.InferenceSession) -> float:
    """One less the share of noise in the outputs."""
    reference = outputs_of(cnn())
    got = np.concatenate([session.run(None, feed)[0] for feed in images()])
    return 1 - float(np.square(got - reference).sum() / np.square(reference).sum())


def outputs_of(model: ir.Model) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0] for feed in images()])


def test_bound_on_the_drop(path, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "judge", types.SimpleNamespace(mean_square=mean_square))
    found = {}
    for bound in (0.5, 1e-6):
        recipe = Recipe(scheme="int8-static", range_method="minmax", max_drop=bound, metric="judge:mean_square")
        found[bound] = optimize(path, recipe, tmp_path / "out.onnx", calibration=Calibration(images())).details
    loose, tight = (found[bound]["mixed_precision"] for bound in found)
    assert (loose["kept"], len(loose["trials"]), loose["met"]) == ((), 1, True)
    assert len(tight["kept"]) > 0
    assert len(tight["trials"]) > 1


def test_a_given_metric_decides_whether_moments_are_restored(path, tmp_path, monkeypatch):
    """Judged on the calibration data the restored model is nearer; with the sign turned it is the worse one."""
    files = {}
    for sign in (1, -1):
        want = outputs(path, images())

        def nearness(session, sign=sign, want=want):
            got = np.concatenate([session.run(None, feed)[0] for feed in images()])
            return sign * float(-np.square(got - want).sum())

        monkeypatch.setitem(sys.modules, "judge", types.SimpleNamespace(nearness=nearness))
        recipe = dataclasses.replace(STATIC, per_channel=False, correct_bias=False, method="rtn")
        for name, given in (("judged", {"metric": "judge:nearness"}), ("without", {"restore_moments": False})):
            output = tmp_path / f"{name}{sign}.onnx"
            optimize(path, dataclasses.replace(recipe, **given), output, calibration=Calibration(images()))
            model = storage.load(output)
            model.metadata_props.clear()
            files[name, sign] = ir.to_proto(model).SerializeToString()
    assert files["judged", 1] != files["without", 1]
    assert files["judged", -1] == files["without", -1]


def test_a_metric_may_be_a_function(path, tmp_path):
    def number_of_outputs(session):
        return len(session.get_outputs())

    recipe = dataclasses.replace(STATIC, metric=number_of_outputs)
    report = optimize(path, recipe, tmp_path / "o.onnx", calibration=Calibration(images()))
    assert report.details["metric"]["int8"] == report.details["metric"]["float32"] == 1
    name = report.recipe["metric"]
    assert name == report.details["metric"]["name"] == f"{__name__}:{number_of_outputs.__qualname__}"
    assert json.loads(storage.load(tmp_path / "o.onnx").metadata_props[METADATA_KEY])["metric"] == name


@pytest.mark.parametrize("max_drop", [None, 0.5])
@pytest.mark.parametrize("sign", [1, -1])
def test_each_model_is_built_and_judged_once(path, tmp_path, monkeypatch, sign, max_drop):
    """Float32, with and without restored moments; a search has judged the last one already.

    It is built without corrections of biases and weights, with the first of them, and with both.
    """
    judged = []

    def count(session):
        judged.append(session)
        return 1000 - sign * len(judged)

    monkeypatch.setitem(sys.modules, "judge", types.SimpleNamespace(count=count))
    placed = []
    place = PlaceQdq.__call__
    monkeypatch.setattr(PlaceQdq, "__call__", lambda self, *given: placed.append(self) or place(self, *given))
    recipe = dataclasses.replace(STATIC, metric="judge:count", max_drop=max_drop)
    report = optimize(path, recipe, tmp_path / "o.onnx", calibration=Calibration(images()))
    assert (len(judged), len(placed)) == (3, 3)
    values = {1000 - sign * 2, 1000 - sign * 3}
    assert report.details["metric"]["int8"] in values
    assert report.details["metric"]["int8"] == max(values)
