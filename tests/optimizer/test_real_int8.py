"""Calibrated INT8 on real models: every product runs on codes, and the tasks hardly notice."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnxpress import models
from onnxpress.models.tasks import reading
from onnxpress.optimizer.analysis.evaluate import evaluate
from onnxpress.optimizer.conversion.pipeline import optimize
from onnxpress.optimizer.errors import OnnxpressError
from onnxpress.optimizer.settings.recipe import Recipe
from scores import float_score
from sessions import runs

pytestmark = pytest.mark.real

STATIC = Recipe(scheme="int8-static", restore_moments=False)


def converted(name: str, path, samples: int, recipe: Recipe = STATIC):
    from onnxpress.optimizer.calibration import Calibration

    report = optimize(name, recipe, path, calibration=Calibration(samples=samples))
    onnx.checker.check_model(report.output, full_check=True)
    return report


@pytest.mark.parametrize(("name", "products", "method"), [
    ("resnet-nsfw", {"QLinearConv": 53, "QGemm": 1}, "rtn"),  # its weights are the largest
    ("efficientnet-lite0", {"QLinearConv": 49, "QGemm": 1}, None), ("ppocr-det", {"QLinearConv": 64}, None),
])  # fmt: skip
def test_every_product_is_int8(name, products, method, tmp_path):
    report = converted(name, tmp_path / "out.onnx", 4, dataclasses.replace(STATIC, method=method))
    kernels = report.details["kernels"]
    assert {op: kernels.get(op) for op in products} == products
    assert not {"Conv", "FusedConv", "Gemm", "MatMul", "ConvTranspose"} & kernels.keys()
    # Of the same model ONNX Runtime 1.23, the newest for Python 3.10, has 0.938 for the detector.
    assert report.details["metric"]["int8"] > (0.95 if runs("opset 24") else 0.93)


def test_recogniser_reads_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_LINES", 80)
    report = converted("ppocr-rec", tmp_path / "out.onnx", 4)
    assert report.details["kernels"]["MatMulIntegerToFloat"] + report.details["kernels"]["QLinearMatMul"] == 13
    # Without restored moments one line or two may change.
    assert evaluate(report.output, "reading").value >= float_score("ppocr-rec").value - 0.04


@pytest.mark.parametrize("scheme", ["int8-static", "int8-dynamic"])
def test_branches_are_refused_node_by_node(scheme, tmp_path):
    """All of silero-vad lies inside an If: the reasons are told, and nothing is written."""
    with pytest.raises(OnnxpressError, match=r"12 Conv: .*2 LSTM: "):
        optimize("silero-vad", Recipe(scheme=scheme), tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_calibration_data_are_there_for_every_model():
    for name in models.names():
        feeds = next(iter(models.calibration(name, 1)))
        assert all(np.isfinite(array).all() for array in feeds.values())
