"""Activations and weights as minifloats on real models: what is rounded, and that the tasks hardly notice."""

from __future__ import annotations

import onnx
import pytest
from onnxpress.models.tasks import reading
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.analysis.evaluate import evaluate
from onnxpress.optimizer.calibration import Calibration
from scores import float_score, float_short_lee, short_lee
from sessions import RUNS_FLOAT8_PRODUCTS

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not RUNS_FLOAT8_PRODUCTS, reason="ONNX Runtime before 1.32 refuses products of FLOAT8"),
]


TOKENS = 32
"""Of a document, for products of FLOAT8 are slow: ONNX Runtime decodes both sides, and multiplies in float32."""


def converted(name: str, path, recipe: Recipe):
    given = Calibration(samples=2) if recipe.scheme != "fp8-dynamic" else None
    report = optimize(name, recipe, path, calibration=given)
    onnx.checker.check_model(report.output, full_check=True)
    return report


@pytest.mark.parametrize(("scheme", "settings", "bound"), [
    ("fp8-static", {}, 0.01), ("fp8-dynamic", {}, 0.01), ("fp8-e5m2-static", {}, 0.02),
    ("fp8-static", {"coverage": "extended"}, 0.015), ("fp8-dynamic", {"activation_format": "e3m4"}, 0.01),
])  # fmt: skip
def test_minilm_still_agrees_with_people(scheme, settings, bound, tmp_path):
    report = converted("minilm", tmp_path / "out.onnx", Recipe(scheme=scheme, **settings))
    wide = settings.get("coverage") == "extended"
    assert report.rewritten["MatMul"] + report.rewritten.get("Gemm", 0) == 48
    assert report.rewritten.get("Gather", 0) == wide
    assert report.size_after < (26e6 if wide else 59e6)
    assert short_lee(report.output, TOKENS) == pytest.approx(float_short_lee(TOKENS), abs=bound)


def test_resnet_but_for_its_ends(tmp_path):
    report = converted("resnet-nsfw", tmp_path / "out.onnx", Recipe(scheme="fp8-static"))
    assert report.rewritten == {"Conv": 52}
    assert report.details["metric"]["minifloat"] > 0.99
    # Which nodes are taken depends on none of the steps that are tried.
    whole = Recipe(scheme="fp8-static", first_and_last=True, check=False, smooth=False, restore_moments=False)
    assert converted("resnet-nsfw", tmp_path / "out.onnx", whole).rewritten == {"Conv": 53, "MatMul": 1}


def test_recogniser_reads_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_LINES", 25)
    report = converted("ppocr-rec", tmp_path / "out.onnx", Recipe(scheme="fp8-static"))
    assert evaluate(report.output, "reading").value >= float_score("ppocr-rec").value - 0.04
