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
    assert _kernels.supported_isas()[0] == "scalar"


@pytest.mark.parametrize("isa", ["scalar", "neon", "avx2", "avxvnni", "avx512vnni", "avx512vbmi", "avx512bf16", "amx"])
def test_environment_forces_or_refuses(isa):
    done = run("from onnxpress.custom_ops import _kernels; print(_kernels.chosen_isa())", isa)
    if isa in _kernels.supported_isas():
        assert done.stdout.strip() == isa
    else:
        assert "this CPU lacks these instructions" in done.stderr


def test_unknown_name_is_an_error_when_the_library_is_registered():
    done = run(SESSION, "pentium")
    assert done.returncode != 0
    assert "ONNXPRESS_ISA=pentium: unknown instruction set" in done.stderr
