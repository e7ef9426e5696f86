"""Which instruction set runs, and who may say so."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from onnxpress.custom_ops import _kernels

SESSION = """
import onnxruntime as ort
from onnxpress import custom_ops
custom_ops.register(ort.SessionOptions())
"""


def run(code, isa):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "ONNXPRESS_ISA": isa}, capture_output=True, text=True
    )


def test_scalar_is_always_there():
    assert _kernels.all_isas()[0] == _kernels.supported_isas()[0] == "scalar"
    assert set(_kernels.supported_isas()) <= set(_kernels.all_isas())


@pytest.mark.parametrize("isa", _kernels.all_isas())
def test_environment_forces_or_refuses(isa, monkeypatch):
    monkeypatch.setenv("ONNXPRESS_ISA", isa)
    if isa in _kernels.supported_isas():
        assert _kernels.chosen_isa() == isa
    else:
        with pytest.raises(RuntimeError, match="this CPU lacks these instructions"):
            _kernels.chosen_isa()


def test_unknown_name_is_an_error_when_the_library_is_registered():
    done = run(SESSION, "pentium")
    assert done.returncode != 0
    assert "ONNXPRESS_ISA=pentium: unknown instruction set; there are " + ", ".join(_kernels.all_isas()) in done.stderr


@pytest.mark.parametrize("isa", _kernels.all_isas())
def test_kernels_of_an_instruction_set(isa):
    """Its own come first, those of the worse ones behind, and portable ones last."""
    order = _kernels.all_isas()
    for kind, names in _kernels.kernels(isa).items():
        assert names == sorted(names, key=order.index, reverse=True)
        assert all(order.index(name) <= order.index(isa) for name in names)
        assert kind.endswith("bfloat16") or names[-1] == "scalar"


@pytest.mark.parametrize(
    ("isa", "lacks"),
    [
        ("neon", {"i8mm"}),  # Neoverse N1
        ("avx2", {"avxvnni"}),
        ("avx512", {"avxvnni", "avx512vnni"}),  # Skylake-SP
        ("avx512vnni", {"avxvnni", "avx512vbmi"}),  # Cascade Lake
        ("avx512bf16", {"avxvnni", "amx"}),  # Zen 4
        ("amx", {"avxvnni", "avx512bf16"}),
    ],
)
def test_an_instruction_set_runs_nothing_that_its_cpus_may_lack(isa, lacks):
    """They are sets of features, not a rank."""
    used = {name for names in _kernels.kernels(isa).values() for name in names}
    assert not used & lacks


def test_kernels_of_no_instruction_set():
    with pytest.raises(ValueError, match="pentium is no instruction set"):
        _kernels.kernels("pentium")
