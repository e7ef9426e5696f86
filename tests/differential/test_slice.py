"""A slice of the random models, always the same; `run.py` goes through as many as there is time for."""

from __future__ import annotations

import pytest
from onnxpress.optimizer.quantization.schemes import SCHEMES
from onnxpress.optimizer.settings.families import FAMILY_SETTINGS
from sessions import needs

from differential.case import make
from differential.judge import _EXACT, _ROUGH, Judge

_CASES = 120
_PARTS = 8


@needs("random models")
@pytest.mark.parametrize("part", range(_PARTS))
def test_random_models_give_the_same_when_converted(part):
    judge = Judge()
    findings = [finding for seed in range(part, _CASES, _PARTS) for finding in judge(make(seed))]
    assert not findings, "\n".join(f"{f.seed}: {f.kind}: {f.step}: {f.detail}" for f in findings)
    assert judge.seen["clean-up"] > 0.9 * judge.seen["cases"] > 0  # most of them are models that ONNX Runtime takes


def test_every_family_is_tried():
    tried = [settings for settings, _ in _ROUGH] + [*_EXACT]
    assert {SCHEMES[settings["scheme"]].family for settings in tried} == {family.name for family in FAMILY_SETTINGS}


def test_a_case_is_made_of_its_seed_alone():
    assert make(5).model.SerializeToString() == make(5).model.SerializeToString()
